"""Runs the comparison: `python -m tests.golden record|compare FOLDER [--only NAME,NAME]`.

`python -m tests.golden small FILE` writes the values of the small part that `tests/test_golden.py` checks, and
`python -m tests.golden fixtures` writes its old files again (only for a version whose files are worth keeping).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.golden.values import REPOSITORY, differences, exact

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
for _name in [name for name in os.environ if name.startswith(("MINIGPTV2_", "SLURM_", "DEMO_"))]:
    del os.environ[_name]  # they would change configs

Item = Callable[[Path, Path, bool], dict[str, Any]]


def items() -> dict[str, Item]:
    """Return the items by name, in the order in which they run. The first ones fork, before anything else has run."""
    from tests.golden import answers, data, training

    return {
        "train": training.train_item,
        "resume": training.resume_item,
        "batches": data.batches_item,
        "plan": data.plan_item,
        "shards": data.shards_item,
        "tasks": answers.tasks_item,
        "answers": answers.answers_item,
        "printed": answers.printed_item,
    }


def load_packages() -> None:
    """Import everything that a rank needs, so that forks start at once."""
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  deepspeed.initialize imports it; 1.5 s
    import peft  # noqa: F401
    import torch
    from torch.utils import tensorboard  # noqa: F401
    from transformers import Blip2VisionModel, LlamaForCausalLM  # noqa: F401

    import minigptv2
    from tests.golden.adapter import find

    find("train")
    find("cli")
    torch.set_num_threads(1)
    print(f"package: {Path(minigptv2.__file__).parent}", flush=True)


def check_item(name: str, item: Item, work: Path, folder: Path, recording: bool) -> bool:
    """Compute an item, then write it, or compare it with what was written; returns whether it is equal."""
    began = time.monotonic()
    found = exact(item(work / name, folder, recording))
    file = folder / f"{name}.json"
    if recording:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        different, verdict = [], f"recorded, {file.stat().st_size / 1024:.0f} KiB"
    else:
        different = differences(json.loads(file.read_bytes()), json.loads(json.dumps(found)))
        verdict = "DIFFERENT" if different else "equal"
    print(f"{name}: {verdict} ({time.monotonic() - began:.1f} s)", flush=True)
    for line in different:
        print(f"  {line}", flush=True)
    return not different


def run_items(folder: Path, only: list[str], recording: bool) -> int:
    """Record or compare the chosen items; returns the exit code."""
    from tests.golden.world import make_world

    folder.mkdir(parents=True, exist_ok=True)
    equal = True
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        work = Path(temporary)
        make_world(work / "world")
        for name, item in items().items():
            if only and name not in only:
                continue
            shutil.copytree(work / "world", work / name / "world")
            try:
                equal &= check_item(name, item, work, folder, recording)
            except Exception as error:  # noqa: BLE001  one item that fails must not hide the others
                import traceback

                traceback.print_exc()
                print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
                equal = False
    return 0 if equal else 1


def main() -> int:
    """Parse the command line and run it from the repository's root."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("command", choices=["record", "compare", "small", "fixtures"])
    parser.add_argument("path", type=Path, nargs="?", help="folder of the record; for `small` the JSON to write")
    parser.add_argument("--only", default="", metavar="NAME,NAME", help="items to record or compare")
    args = parser.parse_args()
    path = args.path.resolve() if args.path else None
    only = [name for name in args.only.split(",") if name]
    if unknown := [name for name in only if name not in items()]:
        parser.error(f"--only: unknown items {', '.join(unknown)}; items: {', '.join(items())}")
    if path is None and args.command != "fixtures":
        parser.error(f"{args.command} needs a path")
    os.chdir(REPOSITORY)
    load_packages()
    if args.command in ("small", "fixtures"):
        from tests.golden import small

        return small.write_small(path) if path else small.write_fixtures()
    assert path is not None
    return run_items(path, only, args.command == "record")


if __name__ == "__main__":
    sys.exit(main())
