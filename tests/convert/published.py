"""Commands and checkpoints that the tests of the published formats share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.conftest import REFERENCE


def words(output: Path, **changed: str | Path | None) -> list[str]:
    """The command that converts the reference, with files or options replaced, or left out if None."""
    options: dict[str, Any] = {
        "--vision": REFERENCE / "eva_vit_g.pth",
        "--language-model": REFERENCE / "llama",
        "--checkpoint": REFERENCE / "minigptv2_checkpoint.pth",
        "--vision-heads": "4",
        "--image-size": "112",
    } | {f"--{key.replace('_', '-')}": value for key, value in changed.items()}
    given = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
    return ["convert", "from-published", *given, "--output", str(output)]


def changed_checkpoint(path: Path, change: Any) -> Path:
    document = torch.load(REFERENCE / "minigptv2_checkpoint.pth", weights_only=True)
    change(document["model"])
    torch.save(document, path)
    return path
