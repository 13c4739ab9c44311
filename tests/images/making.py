"""Makes image files of every kind: formats, modes, orientations, damage, and files that are no images."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from minigptv2.cli import main as cli

WIDTH, HEIGHT = 96, 64
ORIENTATION = 0x0112
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("RGB", "JPEG", {"quality": 90}),
    "jpeg-444": ("RGB", "JPEG", {"quality": 95, "subsampling": 0}),
    "jpeg-progressive": ("RGB", "JPEG", {"quality": 90, "progressive": True}),
    "jpeg-gray": ("L", "JPEG", {"quality": 90}),
    "jpeg-cmyk": ("CMYK", "JPEG", {"quality": 90}),
    "jpeg-restarts": ("RGB", "JPEG", {"quality": 90, "restart_marker_blocks": 4}),
    "png": ("RGB", "PNG", {}),
    "png-alpha": ("RGBA", "PNG", {}),
    "png-palette": ("P", "PNG", {}),
    "png-gray": ("L", "PNG", {}),
    "png-gray-alpha": ("LA", "PNG", {}),
    "png-1-bit": ("1", "PNG", {}),
    "png-16-bit": ("I;16", "PNG", {}),
    "webp": ("RGB", "WEBP", {"quality": 90}),
    "webp-lossless": ("RGBA", "WEBP", {"lossless": True}),
}
"""Mode, format and options of images that shards store."""
CONVERTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gif": ("P", "GIF", {}),
    "bmp": ("RGB", "BMP", {}),
    "tiff": ("RGB", "TIFF", {}),
    "tiff-lzw": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "tiff-16-bit": ("I;16", "TIFF", {}),
}
"""Of those that a build converts to PNG."""


def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Noise without any symmetry, smooth enough for JPEG, with a red left half."""
    rng = np.random.default_rng(width * 1000 + height)
    small = rng.integers(0, 160, (max(1, height // 4), max(1, width // 4), 3), dtype=np.uint8)
    small[:, : max(1, width // 8), 0] += 95
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("RGBA", "LA"):
        image = image.copy()
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


def encode(image: Image.Image, kind: str = "jpeg", orientation: int = 1, **more: Any) -> bytes:
    """The image file of a kind. With an orientation other than 1 a viewer rotates it."""
    mode, format, options = {**KINDS, **CONVERTED}[kind]
    if orientation != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        more["exif"] = exif
    buffer = io.BytesIO()
    in_mode(image, mode).save(buffer, format, **options, **more)
    return buffer.getvalue()


def as_viewers_show(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3]: what Pillow says an upright viewer shows, for modes without transparency and of 8 bits."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, kind: bytes, data: bytes, *, before: bytes = b"IDAT") -> bytes:
    """The PNG with one more chunk."""
    at = png.index(before) - 4
    return png[:at] + chunk(kind, data) + png[at:]


def claiming(width: int, height: int, kind: str = "png") -> bytes:
    """A small file that claims a size."""
    if kind == "png":
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        rows = zlib.compress(bytes(1000))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    jpeg = encode(scene(), "jpeg")
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def write_lines(file: Path, entries: list[dict[str, Any]]) -> None:
    """JSON lines of own data."""
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def captions(folder: Path, files: dict[str, bytes]) -> Path:
    """A file of own data with a caption for each image, and the images."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    write_lines(folder / "own.jsonl", [{"image": name, "task": "caption", "answer": "x"} for name in files])
    return folder / "own.jsonl"


def coco(folder: Path, images: list[dict[str, Any]], boxes: list[tuple[int, list[float]]]) -> Path:
    """A COCO file with annotations 1, 2, ... given as image id and bbox."""
    document = {
        "images": images,
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {"id": number, "image_id": image, "category_id": 1, "bbox": box}
            for number, (image, box) in enumerate(boxes, 1)
        ],
    }
    (folder / "own.json").write_text(json.dumps(document))
    return folder / "own.json"


def build(file: Path, output: Path, *more: str) -> int:
    """Build own data from the command line. Returns the exit code."""
    return cli(["shards", "build", str(file), "--output", str(output), "--workers", "0", *more])


def with_scans(jpeg: bytes, count: int) -> bytes:
    """The JPEG with its last scan repeated, so that it has `count` more scans of the same pixels."""
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + scan * count + jpeg[-2:]


def with_blocks(gif: bytes, blocks: bytes) -> bytes:
    """The GIF with more blocks before its first image."""
    at = 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 0x80 else 0)
    return gif[:at] + blocks + gif[at:]


def tiff(tags: dict[int, tuple[int, int, int]], body: bytes, width: int = 64, height: int = 64) -> bytes:
    """A little-endian gray TIFF with more tags (number to type, count, value or offset), and `body` from byte 1000."""
    every = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
    every.update(tags)
    rows = b"".join(struct.pack("<HHII", number, *every[number]) for number in sorted(every))
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(every)) + rows + bytes(4)).ljust(1000, b"\0") + body


def run_lengths(width: int, height: int, runs: bytes) -> bytes:
    """A BMP of 256 colors in run-length coding."""
    colors = b"".join(bytes((level, 255 - level, level, 0)) for level in range(256))
    size = struct.pack("<IIIHHIIIIII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + len(colors)) + size + colors + runs


def animated(kind: str, count: int = 3, **options: Any) -> bytes:
    """A GIF, PNG, WEBP or TIFF of `count` different frames."""
    frames = [scene(WIDTH, HEIGHT + number).resize((WIDTH, HEIGHT)) for number in range(count)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
    return buffer.getvalue()
