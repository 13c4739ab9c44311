"""Defines the public Python API. Its names are attributes of `minigptv2`, too, and are imported when first used.

import minigptv2
from PIL import Image, ImageOps

predictor = minigptv2.load("runs/demo/stage3/export")
image = ImageOps.exif_transpose(Image.open("photo.jpg"))
question = "[refer] the dog on the left"
answer = predictor.answer([minigptv2.Request(question, (image,))], minigptv2.Decoding(max_new_tokens=64))[0]
found = minigptv2.task_of(question).parse(answer, *image.size)
boxes = [(box, item.phrase) for item in found.grounded for box in item.boxes]
minigptv2.draw_boxes(image, boxes).save("boxes.png")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigptv2.draw import draw_boxes
    from minigptv2.predict.predictor import Decoding, Predictor, Request
    from minigptv2.predict.predictor import load_predictor as load
    from minigptv2.tasks import TASKS, task_of

__all__ = ["TASKS", "Decoding", "Predictor", "Request", "draw_boxes", "load", "task_of"]

_HOMES = {
    "TASKS": "tasks:TASKS",
    "Decoding": "predict.predictor:Decoding",
    "Predictor": "predict.predictor:Predictor",
    "Request": "predict.predictor:Request",
    "draw_boxes": "draw:draw_boxes",
    "load": "predict.predictor:load_predictor",
    "task_of": "tasks:task_of",
}
"""Name to the module and the name there."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minigptv2' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"minigptv2.{module}"), attribute)
