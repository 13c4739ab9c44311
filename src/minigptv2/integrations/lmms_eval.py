"""The model `minigptv2` of lmms-eval: `lmms-eval --model minigptv2 --model_args pretrained=EXPORT --tasks ...`.

The entry point of the package registers it. It answers in batches on one process.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from minigptv2.errors import ConfigError, DataError
from minigptv2.integrations.harness import (
    BOX_FORMATS,
    BoxFormat,
    before_stops,
    harness_decoding,
    harness_question,
    with_boxes,
)
from minigptv2.predict.predictor import load_predictor
from minigptv2.predict.requests import Decoding, Request
from minigptv2.prompt import PromptStyle
from minigptv2.tasks import TASKS


class LmmsModel(lmms):
    """An export behind lmms-eval's interface for models that take a text and images.

    `pretrained` is the export. `task` is the task whose wording the prompts get (`vqa`, `refer`, ...). Without it, a
    prompt is asked as the harness writes it. `boxes` is one of `BOX_FORMATS`, `style` one of `PromptStyle`, and
    `max_new_tokens` the limit of an answer. Raises `ConfigError` for an invalid argument.
    """

    is_simple = True

    def __init__(
        self,
        *,
        pretrained: str,
        task: str | None = None,
        boxes: BoxFormat = "model",
        style: str = PromptStyle.TRAINED,
        max_new_tokens: int = 512,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        unknown.pop("max_batch_size", None)  # lmms-eval passes its own option to every model
        if unknown:
            raise ConfigError(f"unknown model arguments: {', '.join(sorted(unknown))}")
        if boxes not in BOX_FORMATS:
            raise ConfigError(f"boxes must be one of {', '.join(BOX_FORMATS)}, got {boxes}")
        if task is not None and task not in TASKS:
            raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {task}")
        self._task, self._boxes, self._max_new_tokens = task, boxes, int(max_new_tokens)
        self._batch_size = int(batch_size)
        self._predictor = load_predictor(pretrained, style=style, device=device, dtype=dtype)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers to `requests`, in order."""
        groups: dict[tuple[Decoding, tuple[str, ...]], list[int]] = {}
        questions = [self._question(request) for request in requests]
        for number, request in enumerate(requests):
            groups.setdefault(harness_decoding(request.args[1], self._max_new_tokens), []).append(number)
        answers: dict[int, str] = {}
        with tqdm(total=len(requests), desc="answers") as progress:
            for (decoding, stops), numbers in groups.items():
                for start in range(0, len(numbers), self._batch_size):
                    batch = numbers[start : start + self._batch_size]
                    asked = [questions[number] for number in batch]
                    texts = self._predictor.answer(asked, self._fitted(asked, decoding))
                    for number, text in zip(batch, texts, strict=True):
                        answers[number] = with_boxes(before_stops(text, stops), self._boxes)
                    progress.update(len(batch))
        return [answers[number] for number in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: `minigptv2 evaluate` scores given choices."""
        raise NotImplementedError("tasks that score given answers are not supported here: use minigptv2 evaluate")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: tasks of several rounds look at the answers between them."""
        raise NotImplementedError("tasks of several rounds are not supported")

    def _fitted(self, requests: list[Request], decoding: Decoding) -> Decoding:
        """`decoding` with at most the new tokens that fit after the longest prompt."""
        shortest = replace(decoding, max_new_tokens=1)
        longest = max(len(self._predictor.prompt_ids(request, shortest)) for request in requests)
        return self._predictor.fitted(decoding, longest)

    def _question(self, instance: Instance) -> Request:
        text, _, images_of, number, task, split = instance.args
        images = images_of(self.task_dict[task][split][number]) or []
        if not all(isinstance(image, Image.Image) for image in images):
            raise DataError(f"{task}: document {number} has inputs that are no images")
        return Request(harness_question(text, len(images), self._task), tuple(images))
