"""`checkpoint list | verify | show`: list, verify or show the checkpoints of a run."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigptv2.cli.arguments import Parser, add_json, print_json


def add_arguments(parser: Parser) -> None:
    """Add the commands of `checkpoint`."""
    actions = parser.add_commands()
    for name, text, run in (
        ("list", "list the checkpoints of a run, newest first", _list),
        ("verify", "verify checksums. Exit code 4 if a file is missing, cut or changed", _verify),
        ("show", "print the state, the config and the tensors of a checkpoint", _show),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument(
            "path", type=Path, metavar="DIR", help="run folder" + ("" if name == "list" else ", or one checkpoint")
        )
        add_json(action)
        action.set_defaults(run=run)


def _folders(path: Path) -> list[Path]:
    """The checkpoints that a path means: itself, or all of a run, newest first."""
    from minigptv2.engine.checkpoint import STATE_FILE
    from minigptv2.errors import CheckpointError
    from minigptv2.run_folder import RunFolder

    if RunFolder(path.parent.parent).checkpoints == path.parent or (path / STATE_FILE).exists():
        return [path]
    found = RunFolder(path).checkpoint_folders()
    if not found:
        raise CheckpointError(f"no checkpoints in {path}; a run keeps them in <run_dir>/checkpoints")
    return found


def _list(args: argparse.Namespace) -> int:
    rows = [_row(folder) for folder in _folders(args.path)]
    if args.json:
        print_json(rows)
        return 0
    print(f"{'step':>9}  {'samples':>12}  {'MiB':>9}  {'written':<19}  folder")
    for row in rows:
        step, samples = ("damaged", "") if row["damage"] else (row["step"], row["samples"])
        size, last = row["bytes"] / 2**20, row["damage"] or row["folder"]
        print(f"{step:>9}  {samples:>12}  {size:>9.1f}  {row['written']:<19}  {last}")
    return 0


def _row(folder: Path) -> dict[str, Any]:
    """What `list` tells about a checkpoint. `damage` is None if its state can be read."""
    from minigptv2.engine.checkpoint import load_state
    from minigptv2.errors import CheckpointError

    row: dict[str, Any] = {
        "folder": str(folder),
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "written": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(folder.stat().st_mtime)),
    }
    try:
        state = load_state(folder)
    except CheckpointError as error:
        return {**row, "step": None, "samples": None, "damage": str(error)}
    return {**row, "step": state.step, "samples": state.position, "damage": None}


def _verify(args: argparse.Namespace) -> int:
    from minigptv2.engine.checkpoint import verify_checkpoint
    from minigptv2.errors import CheckpointError

    rows: list[dict[str, Any]] = []
    for folder in _folders(args.path):
        try:
            verify_checkpoint(folder)
            rows.append({"folder": str(folder), "damage": None})
        except CheckpointError as error:
            rows.append({"folder": str(folder), "damage": str(error)})
        if not args.json:
            damage = rows[-1]["damage"]
            print(f"damaged  {damage}" if damage else f"intact   {folder}", flush=True)
    if args.json:
        print_json(rows)
    return CheckpointError.exit_code if any(row["damage"] for row in rows) else 0


def _show(args: argparse.Namespace) -> int:
    from minigptv2.engine.checkpoint import WEIGHTS, load_state, verify_checkpoint
    from minigptv2.errors import CheckpointError
    from minigptv2.foreign_files import open_safetensors

    folder = _folders(args.path)[0]
    verify_checkpoint(folder)
    state = load_state(folder)
    opened = open_safetensors(folder / f"{WEIGHTS}.safetensors", CheckpointError, folder=folder)
    tensors = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    if args.json:
        counts = {"step": state.step, "position": state.position, "skipped": state.skipped}
        print_json(
            {
                "folder": str(folder),
                **counts,
                "identity": asdict(state.identity),
                "config": state.config,
                "tensors": tensors,
            }
        )
        return 0
    print(f"{folder}\nstep {state.step}, next sample at position {state.position}, {state.skipped} skipped steps")
    for title, values in (("must be equal on resume", asdict(state.identity)), ("config", state.config)):
        print(f"{title}:")
        for key, value in sorted(values.items()):
            print(f"  {key}: {value}")
    print(f"{len(tensors)} trained tensors (fp32, with both moments of AdamW):")
    for name, shape in tensors.items():
        print(f"  {name} {shape}")
    return 0
