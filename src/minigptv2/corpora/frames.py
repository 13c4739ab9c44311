"""Finds the frame in which an annotation file gives boxes, and maps boxes from it to pixels of the upright image.

A file may state the size of each image. That size decides: it is the upright size, the size as stored (before the EXIF
rotation), or another size of the same proportions, from before the image was resized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minigptv2.boxes import Box
from minigptv2.errors import DataError
from minigptv2.shards.image_header import ImageHeader

CORNERS, SIZES, CENTERS = "x1, y1, x2, y2", "x, y, width, height", "x center, y center, width, height"
"""How the four numbers of a box are given."""
TURNED = "image whose boxes were rotated upright with it"
SCALED = "image whose boxes were scaled from another size"
CUT = "box cut at the border by more than a pixel"
ROUNDED = "box cut at the border by up to a pixel"
"""Keys of `Sample.counts`: what was corrected."""
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """Maps boxes of a file to the upright image of `width` x `height` pixels. `correction` names a change, if any."""

    width: int
    height: int
    across: float = 1.0
    down: float = 1.0
    orientation: int = 1
    correction: str = ""

    def to_image(self, box: Box) -> Box:
        """The box in pixels of the upright image, not cut at its border."""
        x1, y1, x2, y2 = box.x1 * self.across, box.y1 * self.down, box.x2 * self.across, box.y2 * self.down
        return Box(x1, y1, x2, y2) if self.orientation == 1 else self._turn(x1, y1, x2, y2)

    def _turn(self, x1: float, y1: float, x2: float, y2: float) -> Box:
        """The upright box of a box in the stored image (EXIF 2.3, table 6)."""
        width, height, turn = self.width, self.height, self.orientation
        if turn >= 5:
            x1, y1, x2, y2 = y1, x1, y2, x2
        if turn in (2, 3, 6, 7):
            x1, x2 = width - x2, width - x1
        if turn in (3, 4, 7, 8):
            y1, y2 = height - y2, height - y1
        return Box(x1, y1, x2, y2)


def frame_of(
    header: ImageHeader, unit: tuple[float, float] | None, stated: Size | None, *, upright_first: bool = True
) -> Frame:
    """The frame of an image's boxes. Raises `DataError` with the sizes if the stated one is of another image.

    `unit`: width and height of the coordinate system, (1, 1) for normalized boxes, None for pixels. `stated`: the size
    that the file states. `upright_first`: boxes are in the upright image if its size cannot tell, else in the stored
    one.
    """
    upright, stored = (header.width, header.height), (header.stored_width, header.stored_height)
    frames = [(upright, 1), (stored, header.orientation)]
    if not upright_first:
        frames.reverse()
    base, correction = stated or frames[0][0], ""
    exact = [frame for frame in frames if frame[0] == base]
    if not exact:
        exact, correction = [frame for frame in frames if same_proportions(base, frame[0])], SCALED
    if not exact:
        raise DataError(_mismatch(base, upright))
    whole, orientation = exact[0]
    across, down = base if unit is None else unit
    correction = correction or (TURNED if orientation != 1 else "")
    return Frame(*upright, whole[0] / across, whole[1] / down, orientation, correction)


def same_proportions(one: Size, other: Size) -> bool:
    """Whether one size is the other one scaled, with sides rounded to whole pixels."""
    small, large = sorted((one, other), key=lambda size: size[0] * size[1])
    factor = math.sqrt(small[0] * small[1] / (large[0] * large[1]))
    return all(abs(there * factor - here) <= 1.0 for here, there in zip(small, large, strict=True))


def _mismatch(stated: Size, upright: Size) -> str:
    reason = f"the file states {stated[0]} x {stated[1]} pixels, the image has {upright[0]} x {upright[1]}"
    if stated == upright[::-1]:
        return f"{reason}: width and height seem to be exchanged"
    return f"{reason}, another shape: the image was cropped, or is another one. Correct width, height and boxes"
