"""Writes the archives of this folder: one small scene, exported by public tools. Run with their packages installed.

datumaro 1.13.12 (the exporters of CVAT), supervision 0.31.2, label-studio-sdk 2.1.2, img2dataset 1.47.0, and the
sources of labelImg 1.8.6 below `labelImg-1.8.6`. Each tool has its own function, so that one can be run alone:
`python write_exports.py datumaro`.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "traffic light")
BOXES = ((5, 6, 25, 36, 0), (10, 8, 40, 44, 1))
NUMBERS = range(3)
CAPTIONS = ("A {} card.", "A card that is {}.")
COLORS = ("red", "green", "blue")


def boxes_of(number: int) -> tuple[tuple[int, int, int, int, int], ...]:
    """Image 1 has both boxes, the others have the first one."""
    return BOXES if number == 1 else BOXES[:1]


def draw(folder: Path, prefix: str = "") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{prefix}img{number}.jpg" for number in NUMBERS]
    for file, color in zip(files, COLORS, strict=True):
        Image.new("RGB", (64, 48), color).save(file, quality=80)
    return files


def pack(folder: Path) -> None:
    shutil.make_archive(folder.name, "zip", folder)
    shutil.rmtree(folder)


def datumaro() -> None:
    from datumaro.components.annotation import Bbox, Caption
    from datumaro.components.dataset import Dataset
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image as Media

    def item(number: int, annotations: list[object]) -> DatasetItem:
        pixels = np.full((48, 64, 3), number * 60 + 20, dtype=np.uint8)
        name, split = "sub/img 1" if number == 1 else f"img{number}", "val" if number == 2 else "train"
        return DatasetItem(id=name, subset=split, media=Media.from_numpy(data=pixels), annotations=annotations)

    def bbox(x1: int, y1: int, x2: int, y2: int, label: int) -> Bbox:
        return Bbox(x1, y1, x2 - x1, y2 - y1, label=label)

    boxed = Dataset.from_iterable(
        [item(number, [bbox(*box) for box in boxes_of(number)]) for number in NUMBERS], categories=list(CLASSES)
    )
    for kind in ("yolo", "yolo_ultralytics", "voc_detection", "coco_instances"):
        boxed.export(f"datumaro_{kind}", kind, save_media=True)
        pack(Path(f"datumaro_{kind}"))
    said = Dataset.from_iterable(
        [item(number, [Caption(text.format(COLORS[number])) for text in CAPTIONS]) for number in NUMBERS]
    )
    said.export("datumaro_coco_captions", "coco_captions", save_media=True)
    pack(Path("datumaro_coco_captions"))


def supervision() -> None:
    import supervision as sv

    images = draw(Path("images"))
    found = {}
    for number, image in enumerate(images):
        rows = np.array([box[:4] for box in boxes_of(number)], dtype=float)
        found[str(image)] = sv.Detections(xyxy=rows, class_id=np.array([box[4] for box in boxes_of(number)]))
    made = sv.DetectionDataset(classes=list(CLASSES), images=list(found), annotations=found)
    yolo, voc = Path("supervision_yolo"), Path("supervision_voc")
    made.as_yolo(str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"))
    made.as_pascal_voc(str(voc / "JPEGImages"), str(voc / "Annotations"))
    pack(yolo)
    pack(voc)


def label_studio() -> None:
    from label_studio_sdk.converter.converter import Converter

    images = draw(Path("uploads"), prefix="a1b2c3d4-")
    view = "".join(f'<Label value="{name}"/>' for name in CLASSES)
    labels = f'<RectangleLabels name="label" toName="image">{view}</RectangleLabels>'
    Path("view.xml").write_text(f'<View><Image name="image" value="$image"/>{labels}</View>')
    tasks = []
    for number, image in enumerate(images):
        results = []
        for x1, y1, x2, y2, label in boxes_of(number):
            value = {"x": x1 / 0.64, "y": y1 / 0.48, "width": (x2 - x1) / 0.64, "height": (y2 - y1) / 0.48}
            results.append(
                {
                    "type": "rectanglelabels",
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": 64,
                    "original_height": 48,
                    "value": {**value, "rotation": 0, "rectanglelabels": [CLASSES[label]]},
                }
            )
        annotation = {"id": number, "completed_by": 1, "result": results, "was_cancelled": False}
        tasks.append({"id": number, "data": {"image": str(image.resolve())}, "annotations": [annotation]})
    Path("tasks.json").write_text(json.dumps(tasks))
    converter = Converter(config="view.xml", project_dir=".", download_resources=False)
    for kind in ("yolo", "voc"):
        folder = Path(f"label_studio_{kind}")
        convert = getattr(converter, f"convert_to_{kind}")
        convert("tasks.json", str(folder), output_image_dir=str(folder / "images"), is_dir=False)
        for image in images:  # the server exports them, and the converter alone does not
            (folder / "images").mkdir(exist_ok=True)
            shutil.copy(image, folder / "images")
        pack(folder)


def labelimg() -> None:
    sys.path.insert(0, "labelImg-1.8.6")
    from libs.pascal_voc_io import PascalVocWriter
    from libs.yolo_io import YOLOWriter

    for kind, writer, suffix in (("voc", PascalVocWriter, "xml"), ("yolo", YOLOWriter, "txt")):
        folder = Path(f"labelimg_{kind}")
        for number, image in enumerate(draw(folder)):
            made = writer(folder.name, image.name, (48, 64, 3), local_img_path=str(image))
            for *corners, label in boxes_of(number):
                made.add_bnd_box(*corners, CLASSES[label], 0)
            classes = {"class_list": list(CLASSES)} if kind == "yolo" else {}
            made.save(target_file=str(image.with_suffix(f".{suffix}")), **classes)
        pack(folder)


def img2dataset() -> None:
    from img2dataset import download

    images = draw(Path("served"))
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory="served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rows = [
        f"http://127.0.0.1:{server.server_port}/{image.name},{CAPTIONS[0].format(color)}"
        for image, color in zip(images, COLORS, strict=True)
    ]
    Path("urls.csv").write_text("\n".join(["url,caption", *rows]) + "\n")
    download(
        "urls.csv",
        input_format="csv",
        caption_col="caption",
        output_format="files",
        output_folder="img2dataset_files",
        processes_count=1,
        thread_count=1,
        image_size=64,
        resize_mode="no",
    )
    Path("img2dataset_files/00000.parquet").unlink()  # the log of the download, of 10 KB
    pack(Path("img2dataset_files"))


if __name__ == "__main__":
    for tool in sys.argv[1:] or ("datumaro", "supervision", "label_studio", "labelimg", "img2dataset"):
        globals()[tool]()
