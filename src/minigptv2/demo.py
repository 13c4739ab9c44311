"""The toy world from nothing to a report: shards, tokenizer, three stages under `deepspeed`, evaluation.

What `make demo` runs. Every step is a command a user would type; each is skipped if its result is there already.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.data.shards import MANIFEST_FILE
from minigptv2.errors import MiniGPTv2Error

if TYPE_CHECKING:
    from minigptv2.evaluate.heldout import HeldOut

STAGES = ("stage1", "stage2", "stage3")
HELDOUT = ("refer", "vqa", "identify", "detection", "grounding", "caption", "conversation", "language")
CORPORA = ("weak", *HELDOUT)
_QUICK_SAMPLES = 600
_QUICK_STEPS = {"stage1": 200, "stage2": 100, "stage3": 60}
_QUICK_HELDOUT = 40


def run_demo(output: Path, *, quick: bool, processes: int) -> int:
    """Everything, with progress printed; returns 0. Raises `MiniGPTv2Error` naming the step that failed."""
    began = time.monotonic()
    environment = {**os.environ, "DEMO_DIR": str(output), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    seconds: dict[str, float] = {}
    _timed(seconds, "shards", lambda: _build_shards(output / "shards", quick, environment))
    _run(["tokenizer", "--shards", str(output / "shards/train"), "--output", str(output / "tokenizer")], environment)
    for stage in STAGES:
        _timed(seconds, stage, lambda stage=stage: _train(stage, quick, processes, environment))
    _timed(seconds, "evaluation", lambda: _report(output, quick, seconds))
    print(f"everything took {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def _build_shards(shards: Path, quick: bool, environment: dict[str, str]) -> None:
    jobs = [(f"toy_{corpus}", "train") for corpus in CORPORA] + [("photographs", "train")]
    jobs += [(f"toy_{corpus}", "val") for corpus in HELDOUT]

    def build(job: tuple[str, str]) -> None:
        corpus, split = job
        folder = shards / split / corpus
        if (folder / MANIFEST_FILE).is_file():
            return
        limit = ["--limit", str(_QUICK_SAMPLES)] if quick and split == "train" else []
        _run(["shards", "build", corpus, "--split", split, "--output", str(folder), *limit], environment)

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        list(pool.map(build, jobs))


def _train(stage: str, quick: bool, processes: int, environment: dict[str, str]) -> None:
    launcher = shutil.which("deepspeed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if launcher is None:
        raise MiniGPTv2Error("the deepspeed launcher is not on the PATH; is the package installed?")
    words = [f"train.steps={_QUICK_STEPS[stage]}", "train.log_every=20", "evaluate.every=0"] if quick else []
    command = [
        launcher, "--num_accelerators", str(processes), "launch/train.py",
        "--config", f"launch/configs/toy_{stage}.yaml", *words,
    ]  # fmt: skip
    _check(command, environment | {"DS_ACCELERATOR": "cpu"})  # the toy world is fp32, made for CPUs


def _report(output: Path, quick: bool, seconds: dict[str, float]) -> None:
    from minigptv2.evaluate.heldout import load_heldout
    from minigptv2.evaluate.report import write_report, write_results
    from minigptv2.evaluate.run import baseline, evaluate_items, table
    from minigptv2.predict.predictor import load_predictor

    limit = _QUICK_HELDOUT if quick else None
    items = [item for c in HELDOUT for item in load_heldout(output / "shards/val" / f"toy_{c}", limit)]
    photographs = load_heldout(output / "shards/train/photographs")
    last = load_predictor(str(output / STAGES[-1] / "export"))
    final = evaluate_items(last, items)
    shown = evaluate_items(last, photographs)
    figures: dict[str, Any] = {STAGES[-1]: final.figures}
    for stage in STAGES[-2::-1]:
        figures[stage] = evaluate_items(load_predictor(str(output / stage / "export")), items).figures
    untrained = write_untrained(output)
    figures["untrained"] = evaluate_items(load_predictor(str(untrained)), items, max_new_tokens=24).figures
    figures["baseline"] = baseline(items)
    print(table(figures))
    write_results(output / "results.json", {**figures, "photographs": shown.figures, "seconds": seconds})
    page, picture = write_report(
        output, {stage: output / stage for stage in STAGES}, figures, seconds, final, shown
    )  # fmt: skip
    _print_ask(output, items[0])
    print(f"report: {page}  picture: {picture}  figures: {output / 'results.json'}")


def _print_ask(output: Path, item: HeldOut) -> None:
    """Save a held-out scene and say how to ask about it."""
    assert item.image is not None, "the first held-out corpus is one with images"
    item.image.save(output / "scene.png")
    print(
        f'ask: minigptv2 ask --model {output / STAGES[-1] / "export"} {output / "scene.png"} "{item.question}" '
        f"--draw {output / 'answer.png'}"
    )


def write_untrained(output: Path) -> Path:
    """An export of the model stage 1 starts from, for comparison."""
    from minigptv2.model.export import save_untrained
    from minigptv2.run_config import load_run_config

    os.environ["DEMO_DIR"] = str(output)
    config = load_run_config(f"launch/configs/toy_{STAGES[0]}.yaml").value
    return save_untrained(output / "untrained" / "export", config.model, config.seed).folder


def _timed(seconds: dict[str, float], name: str, work: Any) -> None:
    print(f"== {name}", flush=True)
    began = time.monotonic()
    work()
    seconds[name] = round(time.monotonic() - began, 1)
    print(f"== {name}: {seconds[name]:.0f} s", flush=True)


def _run(words: list[str], environment: dict[str, str]) -> None:
    _check([sys.executable, "-m", "minigptv2.cli", *words], environment)


def _check(command: list[str], environment: dict[str, str]) -> None:
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise MiniGPTv2Error(f"exit code {code} from: {' '.join(command)}")
