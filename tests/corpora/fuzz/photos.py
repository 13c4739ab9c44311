"""Images whose upright pixels are known, stored in each EXIF orientation, and boxes in the stored image.

Orientations are computed by Pillow on pixels, and boxes by drawing them, so nothing is shared with the package.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageOps, ImageStat

Box4 = tuple[float, float, float, float]
ORIENTATION_TAG = 0x0112
_TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright image is turned to be stored with an orientation: the inverse of what a viewer does."""
SIZES = ((64, 48), (40, 72), (90, 60))
MAX_MEAN_DIFFERENCE = 12.0
"""Of two decoded images, in levels: JPEG at quality 92 stays below it, and a wrong orientation far above."""


@dataclass(frozen=True)
class Photo:
    """An image file and how a person sees it."""

    name: str
    width: int
    height: int
    orientation: int
    upright: Image.Image

    @property
    def stored(self) -> tuple[int, int]:
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    def box_in_stored(self, box: Box4) -> Box4:
        """A box of whole numbers in the upright image, in pixels of the image as stored."""
        mask = Image.new("L", (self.width, self.height))
        mask.paste(255, tuple(map(int, box)))
        found = as_stored(mask, self.orientation).getbbox()
        assert found is not None
        return found

    def is_seen_in(self, data: bytes) -> bool:
        """Whether an image file shows this photo, upright by its own EXIF."""
        seen = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        if seen.size != self.upright.size:
            return False
        return max(ImageStat.Stat(ImageChops.difference(seen, self.upright)).mean) < MAX_MEAN_DIFFERENCE


def is_photo(name: str) -> bool:
    return name.lower().endswith((".jpg", ".png", ".webp"))


def as_stored(upright: Image.Image, orientation: int) -> Image.Image:
    return upright if orientation == 1 else upright.transpose(_TO_STORED[orientation])


def write_photos(folder: Path, seed: int = 0) -> list[Photo]:
    """A photo for each orientation, size and format, each with colors of its own in four unlike corners."""
    rng = random.Random(seed)
    photos = []
    for width, height in SIZES:
        for orientation in range(1, 9):
            upright = Image.new("RGB", (width, height))
            for corner in range(4):
                left, top = (corner % 2) * width // 2, (corner // 2) * height // 2
                color = (
                    tuple(rng.choice((0, 90, 255)) for _ in range(3)) if corner else (255, 40 * orientation % 256, 0)
                )
                upright.paste(color, (left, top, left + width // 2, top + height // 2))
            kind, suffix = rng.choice([("JPEG", "jpg"), ("JPEG", "JPG"), ("PNG", "png"), ("WEBP", "webp")])
            photo = Photo(f"photos/{width}x{height}-{orientation}.{suffix}", width, height, orientation, upright)
            exif = Image.Exif()
            exif[ORIENTATION_TAG] = orientation
            (folder / "photos").mkdir(exist_ok=True, parents=True)
            quality = {} if kind == "PNG" else {"quality": 92}
            as_stored(upright, orientation).save(folder / photo.name, kind, exif=exif, **quality)
            photos.append(photo)
    return photos


def draw_box(rng: random.Random, photo: Photo) -> Box4:
    """A box of whole numbers well inside the photo, at least 4 pixels wide and high."""
    left, top = rng.randint(2, photo.width - 8), rng.randint(2, photo.height - 8)
    return left, top, rng.randint(left + 4, photo.width - 2), rng.randint(top + 4, photo.height - 2)
