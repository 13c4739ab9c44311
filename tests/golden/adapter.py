"""Resolves every name of the package that the comparison uses, in the new layout or in the old one.

This is the only file of `tests/golden` that knows where the package keeps things. `find` tries the candidates of a name
in order: the new place first. Functions below the table hide differences in signatures.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

NAMES: dict[str, tuple[str, ...]] = {
    # commands
    "cli": ("minigptv2.cli:main",),
    "train": ("minigptv2.cli.train:main", "minigptv2.train:main"),
    # shards and corpora
    "write_corpus": ("minigptv2.shards.writer:write_corpus", "minigptv2.data.shards:write_corpus"),
    "CorpusOptions": ("minigptv2.shards.writer:CorpusOptions", "builtins:dict"),
    "CorpusReader": ("minigptv2.shards.reader:CorpusReader", "minigptv2.data.reader:CorpusReader"),
    "CORPORA": ("minigptv2.corpora.sources:CORPORA", "minigptv2.data.sources:CORPORA"),
    "build": ("minigptv2.corpora.build_corpus:build", "minigptv2.data.build:build"),
    "toy_samples": ("minigptv2.corpora.sources.toy:samples", "minigptv2.data.sources.toy:samples"),
    "photographs": ("minigptv2.corpora.sources.photographs:samples", "minigptv2.data.sources.photographs:samples"),
    "MINIATURES": ("tests.corpora.miniatures:MINIATURES", "tests.data.miniatures:MINIATURES"),
    # from shards to batches
    "DataConfig": ("minigptv2.data.config:DataConfig",),
    "load_recipe": ("minigptv2.data.plan:load_recipe", "minigptv2.data.config:load_recipe"),
    "DataPlan": ("minigptv2.data.plan:DataPlan",),
    "Mixture": ("minigptv2.data.mixture:Mixture",),
    "StepDataset": ("minigptv2.data.loader:StepDataset",),
    "iterate_steps": ("minigptv2.data.loader:iterate_steps",),
    # records, text, tokens
    "Box": ("minigptv2.boxes:Box",),
    "Region": ("minigptv2.record:Region",),
    "Turn": ("minigptv2.record:Turn",),
    "to_json": ("minigptv2.record:to_json",),
    "load_tokenizer": ("minigptv2.tokenizer:load_tokenizer",),
    "train_tokenizer": ("minigptv2.tokenizer:train_tokenizer",),
    "PromptEncoder": ("minigptv2.prompt:PromptEncoder",),
    "PromptStyle": ("minigptv2.prompt:PromptStyle",),
    # tasks
    "TASKS": ("minigptv2.tasks.registry:TASKS", "minigptv2.tasks:TASKS"),
    "task_of": ("minigptv2.tasks.registry:task_of", "minigptv2.tasks:task_of"),
    "segments": ("minigptv2.tasks.answers:segments", "minigptv2.tasks:segments"),
    "speak": ("minigptv2.tasks.base:speak", "minigptv2.tasks:speak"),
    "parse_answer": ("minigptv2.tasks.answers:parse_answer", "minigptv2.tasks:parse_answer"),
    "score": (
        "minigptv2.tasks.scores:score",
        "minigptv2.evaluate.metrics.turns:score",
        "minigptv2.tasks.turns:score",
    ),
    "headline": (
        "minigptv2.tasks.scores:headline",
        "minigptv2.evaluate.metrics.turns:headline",
        "minigptv2.tasks.turns:headline",
    ),
    # model and answers
    "ModelConfig": ("minigptv2.model.config:ModelConfig",),
    "LoraConfig": ("minigptv2.model.config:LoraConfig",),
    "save_untrained": ("minigptv2.model.export:save_untrained",),
    "load_export": ("minigptv2.model.export:load_export",),
    "Predictor": ("minigptv2.predict.predictor:Predictor",),
    "Request": ("minigptv2.predict.requests:Request", "minigptv2.predict.predictor:Request"),
    "Case": ("minigptv2.predict.requests:Case", "minigptv2.predict.predictor:Case"),
    "Decoding": ("minigptv2.predict.requests:Decoding", "minigptv2.predict.predictor:Decoding"),
    # runs
    "read_attempts": ("minigptv2.cluster.attempts:run_journal", "minigptv2.engine.attempts:read_attempts"),
}
"""Logical name to the places where it may be, `module:attribute`, the newest first."""


@cache
def find(name: str) -> Any:
    """Return the object of a logical name. Raises `ImportError` that lists the places if none of them has it."""
    for place in NAMES[name]:
        module_name, attribute = place.split(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                continue
            raise  # the module is there, and something that it imports is missing
        if hasattr(module, attribute):
            return getattr(module, attribute)
    raise ImportError(f"tests/golden/adapter.py: '{name}' is at none of {', '.join(NAMES[name])}; add its new place")


def attempts(run: Path) -> list[tuple[int, str, int | None, int | None]]:
    """Return start step, reason of the end, exit code and saved step of every start of a run."""
    found = find("read_attempts")(run)
    if hasattr(found, "read"):
        return [(one.start_step, one.reason, one.exit_code, one.saved_step) for one in found.read()]
    return [(one.step, one.ended, one.exit_code, one.saved_step) for one in found]


def write_corpus(samples: Any, output: Path, corpus: str, *, samples_per_shard: int, **options: Any) -> None:
    """Write a corpus with `options`, which the new layout takes as one object."""
    made = find("CorpusOptions")(**options)
    more = options if isinstance(made, dict) else {"options": made}
    find("write_corpus")(samples, output, corpus, samples_per_shard=samples_per_shard, **more)


def _task(name: str) -> Any | None:
    """Return the new task object, which renders, parses and scores, or None in the old layout."""
    task = find("TASKS").get(name)
    return task if hasattr(task, "render") else None


def render(turn: Any, width: int, height: int, draw: Random | None = None) -> tuple[str, str]:
    """Return question and answer of a turn, with the wording drawn by `draw` (None: the first of everything)."""

    def pick(options: Sequence[Any]) -> Any:
        return options[draw.randrange(len(options))] if draw else options[0]

    task = _task(turn.task)
    rendered = task.render(turn, width, height, pick) if task else find("speak")(turn, width, height, draw)
    return rendered.question, rendered.answer


def parse(text: str, task: str, width: int, height: int) -> Any:
    """Return the parsed answer: `text`, `grounded` phrases with boxes, `well_formed`."""
    new = _task(task)
    return new.parse(text, width, height) if new else find("parse_answer")(text, task, width, height)


def score(turn: Any, text: str, width: int, height: int) -> dict[str, float]:
    """Return the scores of an answer by name."""
    task = _task(turn.task)
    if task:
        return task.score(turn, text, width, height)
    return find("score")(SimpleNamespace(turn=turn, width=width, height=height), text)


def task_name(question: str) -> str:
    """Return the name of the task that a question asks for: the name itself in the old layout, a task in the new."""
    found = find("task_of")(question)
    return found if isinstance(found, str) else found.name


def headline(task: str) -> str:
    """Return the name of the score that stands for a task."""
    new = _task(task)
    return new.headline if new else find("headline")(task)


def tensors_of(batch: Any) -> dict[str, Any]:
    """Return the tensors of a micro-batch: a plain dictionary in the old layout, `inputs` of it in the new one."""
    return dict(getattr(batch, "inputs", batch))
