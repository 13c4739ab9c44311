"""`checkpoint list | verify | show`, `lineage`, `replay`: what a run left behind, and what it came from."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add this file's sub-commands."""
    checkpoint = commands.add_parser("checkpoint", help="list, verify or show the checkpoints of a run")
    actions = checkpoint.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text, run in (
        ("list", "the checkpoints of a run, newest first", _list),
        ("verify", "read every byte; exit code 4 if a file is missing, cut or changed", _verify),
        ("show", "what a checkpoint says of itself, and its tensors", _show),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("path", type=Path, help="a run folder" + ("" if name == "list" else ", or one checkpoint"))
        action.set_defaults(run=run)

    lineage = commands.add_parser("lineage", help="the chain of stages an export came from")
    lineage.add_argument("export", type=Path, help="an export, or a run folder that has one")
    lineage.add_argument("--json", action="store_true", help="all of it, configs included")
    lineage.set_defaults(run=_lineage)

    replay = commands.add_parser("replay", help="run a discarded step again on one machine, micro-batch by micro-batch")
    replay.add_argument("bundle", type=Path, help="<run_dir>/bundles/step-...")
    replay.add_argument("--device", default="cpu")
    replay.set_defaults(run=_replay)


def _folders(path: Path) -> list[Path]:
    """The checkpoints that a path means: itself, or all of a run, newest first."""
    from minigptv2.engine.checkpoint import STATE_FILE, list_checkpoints
    from minigptv2.errors import CheckpointError

    if path.parent.name == "checkpoints" or (path / STATE_FILE).exists():
        return [path]
    found = list_checkpoints(path)
    if not found:
        raise CheckpointError(f"{path}: no checkpoints there; a run keeps them in <run_dir>/checkpoints")
    return found


def _list(args: argparse.Namespace) -> int:
    from minigptv2.engine.checkpoint import load_state
    from minigptv2.errors import CheckpointError

    print(f"{'step':>9}  {'samples':>12}  {'MiB':>9}  {'written':<19}  folder")
    for folder in _folders(args.path):
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(folder.stat().st_mtime))
        try:
            state = load_state(folder)
            print(f"{state.step:>9}  {state.position:>12}  {size:>9.1f}  {written:<19}  {folder}")
        except CheckpointError as error:
            print(f"{'damaged':>9}  {'':>12}  {size:>9.1f}  {written:<19}  {error}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from minigptv2.engine.checkpoint import verify_checkpoint
    from minigptv2.errors import CheckpointError

    damaged = 0
    for folder in _folders(args.path):
        try:
            verify_checkpoint(folder)
            print(f"whole    {folder}")
        except CheckpointError as error:
            damaged += 1
            print(f"damaged  {error}")
    return CheckpointError.exit_code if damaged else 0


def _show(args: argparse.Namespace) -> int:
    from safetensors import safe_open

    from minigptv2.engine.checkpoint import WEIGHTS, load_state, verify_checkpoint

    folder = _folders(args.path)[0]
    verify_checkpoint(folder)
    state = load_state(folder)
    print(f"{folder}\nstep {state.step}, next sample at position {state.position}, {state.skipped} steps discarded")
    for title, values in (("must be equal on resume", state.identity), ("config", state.config)):
        print(f"{title}:")
        for key, value in sorted(values.items()):
            print(f"  {key}: {value}")
    with safe_open(str(folder / f"{WEIGHTS}.safetensors"), framework="numpy") as opened:
        names = list(opened.keys())
        print(f"{len(names)} trained tensors (fp32, with both moments of AdamW):")
        for name in names:
            print(f"  {name} {opened.get_slice(name).get_shape()}")
    return 0


def _lineage(args: argparse.Namespace) -> int:
    from minigptv2.model.export import load_info

    folder = args.export if (args.export / "config.json").exists() else args.export / "export"
    info = load_info(folder)
    if args.json:
        print(json.dumps([dict(stage) for stage in info.lineage], indent=1))
        return 0
    print(f"{info.folder}: weights {info.weights_sha256}")
    for number, stage in enumerate(info.lineage, 1):
        print(f"{number}. {stage['stage']}: {stage['steps']} steps, seed {stage['seed']}")
        for key in ("skipped", "recipe", "data_plan", "parent", "base_sha256", "versions"):
            if stage.get(key):
                value = stage[key]
                text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
                print(f"     {key}: {text}")
        config = stage.get("config", {})
        print(
            f"     config: {len(config)} keys; lr {config.get('train.learning_rate')}, "
            f"batch {config.get('train.global_batch_size')}, trained {config.get('model.trainable')}"
        )
    return 0


def _replay(args: argparse.Namespace) -> int:
    from minigptv2.train.replay import replay

    return replay(args.bundle, device=args.device)
