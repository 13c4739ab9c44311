"""Names what a file is that cannot be used as an image, and how much of a truncated image is there.

Reasons are in our own words. Messages of image libraries hold memory addresses and differ by version.
"""

from __future__ import annotations

import json
import zlib

import simplejpeg

from minigptv2.shards.image_header import ImageHeader, Incomplete, png_chunks

CONVERT = "convert it to JPEG or PNG"
_HEAD = 4096
"""Bytes in which the kind of a text is looked for."""
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"\x00\x00\x02\x00", "a cursor (CUR)"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x8aMNG", "an MNG animation"),
    (b"\x8bJNG", "a JNG image"),
    (b"qoif", "a QOI image"),
    (b"DDS ", "a DDS texture"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"SIMPLE  =", "a FITS image"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x00\x05\x16\x07", "a file of macOS metadata (AppleDouble, `._` files); the image is beside it"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"BZh", "a bzip2 archive; unpack it"),
    (b"\xfd7zXZ", "an xz archive; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"FORM", "an IFF file"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"II+\x00", "a BigTIFF image"),
    (b"MM\x00+", "a BigTIFF image"),
)
_BRANDS = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"hevc": "HEIC",
    b"hevx": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"crx ": "a Canon raw image (CR3)",
}
"""Brands of ISO base media files that hold images (ISO 23008-12)."""
_PAGE_STARTS = (
    b"<!doctype html",
    b"<html",
    b"<head",
    b"<body",
    b"<title",
    b"<script",
    b"<meta",
    b"<div",
    b"<h1",
)


def name_content(data: bytes) -> str:
    """What a file that begins like no JPEG, PNG or WebP is, as a reason, with the remedy if there is one."""
    if not data:
        return "an empty file"
    if not data.strip(b"\0"):
        return f"{len(data)} zero bytes, as an interrupted copy leaves them"
    return _by_start(data) or _by_text(data) or "not a JPEG, PNG or WebP image"


def _by_start(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        compatible = [data[at : at + 4] for at in range(16, min(len(data), 64), 4)]
        known = next((_BRANDS[brand] for brand in (data[8:12], *compatible) if brand in _BRANDS), None)
        return f"{known}, which is not supported; {CONVERT}" if known else "a video (MP4 or MOV)"
    if data[:4] == b"RIFF":
        return {b"AVI ": "a video (AVI)", b"WAVE": "a WAV file"}.get(bytes(data[8:12]), "a RIFF file that is not WebP")
    if data[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7") and data[2:3].isspace():
        return f"a Netpbm image (PBM, PGM, PPM or PAM); {CONVERT}"
    if data[128:132] == b"DICM":
        return f"a DICOM image; {CONVERT}"
    if data[257:262] == b"ustar":
        return "a tar archive; unpack it"
    found = next((words for start, words in _STARTS if data.startswith(start)), "")
    return f"{found}; {CONVERT}" if found and ";" not in found and not _is_no_image(found) else found


def _is_no_image(words: str) -> bool:
    return words.endswith(("program", "Ogg file", "MP3 file")) or "video" in words


def _by_text(data: bytes) -> str:
    """What a text is: web pages, answers of servers and pointers are what failed downloads leave."""
    head = data[:_HEAD].removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = head.lower()
    if head.startswith(b"version https://git-lfs.github.com/"):
        return "a Git LFS pointer, not the image; fetch it with `git lfs pull`"
    if lower.startswith(b"<"):
        body = lower
        if b"<svg" in body and b"<html" not in body.split(b"<svg")[0]:
            return f"an SVG drawing; {CONVERT}"
        if lower.startswith(_PAGE_STARTS) or b"<html" in body or b"<!doctype html" in body:
            return "a web page, not the image"
        return "an XML document, not the image" if lower.startswith(b"<?xml") else "a document with tags, not the image"
    if lower.startswith(b"data:image/"):
        return "a data: URL as text, not the image; decode it"
    try:
        text = data[:_HEAD].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(data[:_HEAD]) - 4:
            return ""
        text = data[: error.start].decode("utf-8-sig")
    if not all(character.isprintable() or character in "\r\n\t\f" for character in text):
        return ""
    if text.lstrip()[:1] in ("{", "["):
        try:
            json.loads(data)
        except (ValueError, RecursionError):
            return "a text file, not the image"
        return "a JSON document, not the image"
    if text.strip().startswith(("http://", "https://")):
        return "a text file with an address, not the image"
    return "a text file, not the image" if text.strip() else "white space, not the image"


def truncation(data: bytes, header: ImageHeader) -> str:
    """`truncated after 61 %` for an image whose data ends too early: the share of its pixels that is there.

    For a progressive JPEG, whose data covers the image several times, the last scan that was begun is named instead.
    """
    if header.kind == "WEBP":
        stated = 8 + int.from_bytes(data[4:8], "little")
        return _after(len(data), stated) if len(data) < stated else "damaged: its WebP data cannot be decoded"
    if header.kind == "PNG":
        return _after(_inflated(data, header), _expected_bytes(data, header))
    if header.progressive:
        scans = data.count(b"\xff\xda")
        return f"truncated in scan {scans} of a progressive JPEG"
    return _after(_rows_there(data), 1000)


def _after(there: int, stated: int) -> str:
    return f"truncated after {max(0, min(99, 100 * there // max(1, stated)))} %"


def _rows_there(data: bytes) -> int:
    """Thousandths of a baseline JPEG's rows that are there: the decoder fills the others with 50 % gray."""
    try:
        small = simplejpeg.decode_jpeg(data, "GRAY", min_width=1, min_height=1, min_factor=8, strict=False)[..., 0]
    except ValueError:
        return 0
    present = (small != 128).any(axis=1).nonzero()[0]
    return 1000 * (int(present[-1]) + 1) // len(small) if len(present) else 0


def _expected_bytes(data: bytes, header: ImageHeader) -> int:
    """Bytes of a PNG's rows before compression. Interlaced images need a few more, which is not counted."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(data[25], 1)
    return header.stored_height * (1 + (header.stored_width * samples * data[24] + 7) // 8)


def _inflated(data: bytes, header: ImageHeader) -> int:
    """Bytes that the complete and the last, incomplete, chunk of a PNG decompress to, at most those expected."""
    pieces, last = [], 8
    try:
        for kind, start, length in png_chunks(data):
            last = start + length + 4
            if kind == b"IDAT":
                pieces.append(data[start : start + length])
    except Incomplete:
        if data[last + 4 : last + 8] == b"IDAT":
            pieces.append(data[last + 8 :])
    inflater, count, limit = zlib.decompressobj(), 0, _expected_bytes(data, header)
    try:
        for piece in pieces:
            while piece and count < limit and not inflater.eof:
                count += len(inflater.decompress(piece, 1 << 20))
                piece = inflater.unconsumed_tail
    except zlib.error:
        return count
    return count
