"""Tests that an image has the same pixels wherever it is seen: upright, whatever its orientation, mode and format."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minigptv2.cli import main as cli
from minigptv2.corpora import preview
from minigptv2.heldout.samples import load_heldout
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.predict.predictor import Predictor
from minigptv2.serve.uploads import ImageStore
from minigptv2.shards.fast_decode import Stopwatch, square_pixels
from minigptv2.shards.image_files import image_size, open_image, square
from minigptv2.shards.reader import CorpusReader
from minigptv2.tokenizer import Tokenizer
from tests.images.making import CONVERTED, KINDS, as_viewers_show, build, captions, encode, scene, write_lines
from tests.model.tiny import save_tiny_export

ALL = {**KINDS, **CONVERTED}
EXIF_FORMATS = [kind for kind in ALL if not kind.startswith(("gif", "bmp"))]
"""Kinds whose format can state an orientation."""
SIDE = 32


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", [kind for kind in EXIF_FORMATS if ALL[kind][0] in ("RGB", "L", "P")])
def test_an_image_is_read_as_viewers_show_it(kind: str, orientation: int) -> None:
    data = encode(scene(), kind, orientation)
    if kind in CONVERTED:
        return  # test_a_built_corpus_holds_upright_sizes
    shown = as_viewers_show(data)
    assert np.array_equal(np.asarray(open_image(data, "here")), shown)
    assert image_size(data, "here")[1:] == shown.shape[1::-1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", EXIF_FORMATS)
def test_training_sees_what_inference_sees(kind: str, orientation: int, tmp_path: Path) -> None:
    file = captions(tmp_path, {"a.bin": encode(scene(), kind, orientation)})
    assert build(file, tmp_path / "out") == 0
    reader = CorpusReader(tmp_path / "out")
    data, record = reader.image(0), reader.record(0)
    assert (record.width, record.height) == ((64, 96) if orientation >= 5 else (96, 64)) == image_size(data, "")[1:]
    seen = square(open_image(data, ""), SIDE).astype(int)
    trained = square_pixels(data, "", SIDE, Stopwatch()).numpy().astype(int)
    assert np.abs(trained - seen).max() <= 2
    other = square(open_image(data, "").transpose(Image.Transpose.ROTATE_180), SIDE).astype(int)
    assert np.abs(trained - other).max() > 20, "the scene has no symmetry"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return save_tiny_export(tmp_path_factory.mktemp("model"), tokenizer.path)


class Seen:
    """Records what the vision encoder receives, and what a preview shows before boxes are drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pixels: list[np.ndarray] = []
        encode_images, shown = MiniGPTv2.encode_images, preview.square

        def record(model: MiniGPTv2, images: Any, *more: Any) -> Any:
            self.pixels += [image.numpy().copy() for image in images.cpu()]
            return encode_images(model, images, *more)

        def record_square(image: Image.Image, side: int) -> np.ndarray:
            self.pixels.append(shown(image, SIDE))
            return shown(image, side)

        monkeypatch.setattr(MiniGPTv2, "encode_images", record)
        monkeypatch.setattr(preview, "square", record_square)

    def take(self) -> np.ndarray:
        """The only image that was seen since the last call."""
        found, self.pixels = self.pixels, []
        assert found and all(np.array_equal(found[0], one) for one in found)
        return found[0]


@pytest.mark.parametrize(
    ("kind", "orientation"),
    [*(("jpeg", n) for n in range(1, 9)), *((kind, 6) for kind in EXIF_FORMATS), ("gif", 1), ("bmp", 1)],
)
def test_every_way_to_see_an_image_gives_the_same_pixels(
    tmp_path: Path, export: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, kind: str, orientation: int
) -> None:
    seen, data = Seen(monkeypatch), encode(scene(), kind, orientation)
    file = captions(tmp_path, {"a.bin": data})
    assert build(file, tmp_path / "out") == 0
    wanted = seen.take()  # of the preview
    word = ["--model", str(export), "--max-new-tokens", "1"]
    assert cli(["ask", *word, str(tmp_path / "a.bin"), "what?"]) == 0
    assert np.array_equal(seen.take(), wanted)
    for command, turn in (("predict", {"question": "what?"}), ("score", {"question": "what?", "answer": "red"})):
        write_lines(tmp_path / "in.jsonl", [{"image": "a.bin", "turns": [turn]}])
        words = ["--model", str(export), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / command)]
        assert cli([command, *words, *(["--max-new-tokens", "1"] if command == "predict" else [])]) == 0
        assert np.array_equal(seen.take(), wanted)
    words = ["evaluate", "--model", str(export), "--shards", str(tmp_path), "--corpus", "out"]
    assert cli([*words, "--output", str(tmp_path / "e")]) == 0
    assert np.array_equal(seen.take(), wanted)
    predictor = Predictor.__new__(Predictor)
    stored = CorpusReader(tmp_path / "out").image(0)
    monkeypatch.setattr(Predictor, "prepare", lambda self, image: square(image.convert("RGB"), SIDE))
    served = ImageStore(predictor, max_megapixels=64).open(stored if kind in CONVERTED else data)
    assert np.array_equal(served.prepared, wanted)
    (item,) = load_heldout(tmp_path / "out")
    assert item.image is not None and np.array_equal(square(item.image, SIDE), wanted)
    trained = square_pixels(stored, "", SIDE, Stopwatch()).numpy().astype(int)
    assert np.abs(trained - wanted).max() <= 2


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_baked_image_is_upright(tmp_path: Path, orientation: int) -> None:
    data = encode(scene(), "png", orientation)
    assert build(captions(tmp_path, {"a.png": data}), tmp_path / "out", "--bake", str(SIDE)) == 0
    stored = np.asarray(CorpusReader(tmp_path / "out").open_image(0)).astype(int)
    upright = square(Image.fromarray(as_viewers_show(data)), SIDE).transpose(1, 2, 0).astype(int)
    assert np.abs(stored - upright).mean() < 8


@pytest.mark.parametrize("kind", ["jpeg", "jpeg-progressive", "png", "webp"])
@pytest.mark.parametrize("where", ["start", "end"])
def test_exif_is_found_wherever_a_file_has_it(kind: str, where: str) -> None:
    data = encode(scene(), kind, 6)
    if kind.startswith("jpeg") and where == "end":  # behind the frame header, before the scan
        exif = data.index(b"\xff\xe1")
        length = 2 + int.from_bytes(data[exif + 2 : exif + 4], "big")
        rest = data[:exif] + data[exif + length :]
        scan = rest.index(b"\xff\xda")
        data = rest[:scan] + data[exif : exif + length] + rest[scan:]
    elif kind == "png" and where == "end":
        exif = data.index(b"eXIf") - 4
        length = 12 + int.from_bytes(data[exif : exif + 4], "big")
        rest, end = data[:exif] + data[exif + length :], -12
        data = rest[:end] + data[exif : exif + length] + rest[end:]
    assert image_size(data, "")[1:] == (64, 96) == open_image(data, "").size


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_orientation_that_does_not_exist_is_upright(value: int) -> None:
    data = encode(scene(), "jpeg", value)
    assert open_image(data, "").size == (96, 64)


@pytest.mark.parametrize("cut", range(8, 40, 4))
def test_damaged_exif_is_upright_and_refuses_nothing(cut: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, buffer = scene(), io.BytesIO()
    image.save(buffer, "JPEG", exif=exif.tobytes()[:cut])
    assert open_image(buffer.getvalue(), "").size in ((96, 64), (64, 96))


@pytest.mark.parametrize(("size", "factor"), [((8064, 6048), 4), ((8160, 6144), 4)])
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_images_of_48_and_50_megapixels_are_accepted_and_reduced(
    tmp_path: Path, size: tuple[int, int], factor: int, kind: str
) -> None:
    image = scene(640, 480).resize(size, Image.Resampling.NEAREST)
    data = encode(image, kind, 6 if kind == "jpeg" else 1, **({"compress_level": 1} if kind == "png" else {}))
    file = captions(tmp_path, {"a.bin": data})
    write_lines(file, [{"image": "a.bin", "task": "refer", "phrase": "x", "boxes": [10, 20, 6000, 6000]}])
    assert build(file, tmp_path / "out") == 0
    reader = CorpusReader(tmp_path / "out")
    upright = size[::-1] if kind == "jpeg" else size
    assert (reader.record(0).width, reader.record(0).height) == upright
    opened = reader.open_image(0)
    assert opened.size == (-(-upright[0] // factor), -(-upright[1] // factor))
    trained = square_pixels(data, "", SIDE, Stopwatch()).numpy().astype(int)
    assert np.abs(trained - square(opened, SIDE)).max() <= 2
    small = scene(640, 480).transpose(Image.Transpose.ROTATE_270) if kind == "jpeg" else scene(640, 480)
    assert np.abs(trained - square(small, SIDE)).mean() < 8, "the same scene"
    (item,) = load_heldout(tmp_path / "out")
    assert (item.width, item.height) == upright


def test_an_image_over_the_limit_is_trained_where_it_was_built(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = encode(Image.new("RGB", (11_000, 8_000), (200, 30, 40)), "jpeg")
    file = captions(tmp_path, {"a.jpg": data})
    assert build(file, tmp_path / "out") == 3
    assert build(file, tmp_path / "out", "--max-pixels", "90") == 0
    assert cli(["shards", "verify", str(tmp_path / "out"), "--workers", "0"]) == 0
    reader = CorpusReader(tmp_path / "out")
    assert reader.manifest.max_pixels == 90_000_000 and reader.open_image(0).size == (2750, 2000)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["max_pixels"] == 90_000_000
