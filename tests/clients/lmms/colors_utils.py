"""The functions of the local task `minigptv2_colors` of lmms-eval."""

from typing import Any

from PIL import Image


def images_of(document: dict[str, Any]) -> list[Image.Image]:
    """The picture of a question."""
    return [Image.open(document["image"]).convert("RGB")]


def score(document: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Whether the answer is the label."""
    return {"accuracy": float(answers[0].strip() == document["answer"])}
