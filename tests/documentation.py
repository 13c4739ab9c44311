"""The commands, links and paths of the documentation; run as a program it executes the commands in a clean checkout.

A command is a line of a fenced block without a language (or of a shell), or inline code that begins with `minigptv2`
or `make`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PAGES = sorted(
    [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")]
    + [REPOSITORY / f"{folder}/README.md" for folder in ("src/minigptv2", "data_recipes", "deepspeed_configs")]
    + list((REPOSITORY / "launch").glob("*.md"))
)
PROGRAMS = ("minigptv2", "make", "python", "deepspeed", "torchrun")
SHELL = ("", "bash", "sh", "console")
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

NOT_HERE = (
    ("make stage|deepspeed |torchrun ", "trains the full model: needs GPUs and weights"),
    ("from-published|from-packages|from-deepspeed|to-published|to-peft|merge|demo-pretrained", "needs weights"),
    ("slurm|sbatch|srun", "needs Slurm"),
    ("make shards|shards build", "needs downloaded corpora"),
    ("models/minigptv2-7b", "needs the published weights"),
    (
        "make (test|check|install|clean|lint|tensorboard|serve|soak|bench|fuzz)|minigptv2 serve",
        "has its own target, or never ends",
    ),
    ("make demo($| [^Q])", "a quarter of an hour; QUICK=1 is run instead"),
    ("doctor --config launch/configs/stage", "says, with exit code 1, that weights and shards are missing"),
    ("pip install|apt-get|launch/train.py", "changes the machine, or trains for long"),
)
"""Commands that the program does not execute, by pattern, and why."""
RUN_AS_ONE = {"docs/your-own-data.md": "run as one script by tests/test_own_data_page.py"}
"""Pages whose commands only make sense one after the other, and what runs them so."""


@dataclass(frozen=True)
class Command:
    """A command of a page. `whole`: from a fenced block, so it can be run as it stands."""

    page: Path
    text: str
    whole: bool

    @property
    def words(self) -> list[str]:
        """The words without assignments before the program; the program without its folder."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words.pop(0)
        if words:
            words[0] = words[0].removeprefix(".venv/bin/")
        return words

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}: {self.text}"


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of `languages`, dedented."""
    found = _FENCE.findall(page.read_text())
    return [re.sub(f"^{indent}", "", body, flags=re.MULTILINE) for indent, named, body in found if named in languages]


def commands(page: Path) -> Iterator[Command]:
    """Every command of a page, in order: whole ones, then those in running text."""
    for block in blocks(page, *SHELL):
        for line in block.replace("\\\n", " ").splitlines():
            command = Command(page, re.sub(r"\s+", " ", line.strip()), True)
            if line.strip() and _program(command) in PROGRAMS:
                yield command
    prose = _FENCE.sub("", page.read_text())
    for text in _INLINE.findall(prose):
        if text.split(" ")[0] in ("minigptv2", "make") and " " in text:
            yield Command(page, text, False)


def _program(command: Command) -> str:
    try:
        words = command.words
    except ValueError:  # a log's line with a quote
        return ""
    return words[0] if words else ""


def links(page: Path) -> list[str]:
    """Targets of the page's links and pictures that are not on the web."""
    return [target for target in _LINK.findall(_FENCE.sub("", page.read_text())) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def reason_not_run(command: Command) -> str | None:
    """Why a command is not executed, or None if it is."""
    if why := RUN_AS_ONE.get(str(command.page.relative_to(REPOSITORY))):
        return why
    return next((why for pattern, why in NOT_HERE if re.search(pattern, command.text)), None)


def main() -> int:
    """Clone HEAD, make the quick demo there, and run every command that can run; 1 if one fails."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--keep", metavar="DIR", help="use this folder and keep it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(args.keep or made) / "checkout"
        if not folder.exists():
            subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(folder)], check=True)
        return _run_all(folder)


def _run_all(folder: Path) -> int:
    prepare = [Command(REPOSITORY / "README.md", "make demo QUICK=1", True)]
    found = [command for page in PAGES for command in commands(page) if command.whole]
    unique = {command.text: command for command in [*prepare, *found]}
    failed = 0
    for number, command in enumerate(unique.values()):
        if why := reason_not_run(command):
            print(f"not run  {command}  ({why})", flush=True)
            continue
        began = time.monotonic()
        done = _run(folder, command)
        failed += done.returncode != 0
        print(f"{'ok' if done.returncode == 0 else 'FAILED':8} {command}  {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode:
            print((done.stdout + done.stderr)[-3000:], flush=True)
        if number == 0:
            _add_inputs(folder)
    return 1 if failed else 0


def _run(folder: Path, command: Command) -> subprocess.CompletedProcess[str]:
    """Run it as a reader would: with the checkout's environment first on the path."""
    assigned = dict(re.findall(r"(?:^|\s)(\w+)=(\S+)", command.text.split(command.words[0])[0]))
    path = f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PATH": path, **assigned}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        command.words, cwd=folder, env=environment, capture_output=True, text=True, input="", check=False
    )


def _add_inputs(folder: Path) -> None:
    """The files that a reader would bring: a photograph, questions about it, answers to score."""
    picture = (folder / "runs" / "demo" / "scene.png").read_bytes()
    for name in ("photo.jpg", "photo.png"):
        (folder / name).write_bytes(picture)
    (folder / "requests.jsonl").write_text('{"image": "photo.jpg", "turns": [{"question": "[vqa] what is it?"}]}\n')
    cases = '{"image": "photo.jpg", "turns": [{"question": "[vqa] what is it?", "answer": "a bar"}]}\n'
    (folder / "cases.jsonl").write_text(cases)


if __name__ == "__main__":
    sys.exit(main())
