"""Finds the commands, links and paths of the documentation. As a program it runs the commands in a clean checkout.

A command is a line of a fenced block without a language (or of a shell), or inline code that begins with `minigptv2`
or `make`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minigptv2.cli import main as run_command
from minigptv2.cli import parse
from minigptv2.evaluate.benchmarks import BENCHMARKS
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.tokenizer import load_tokenizer
from tests.corpora.miniatures import MINIATURES
from tests.evaluate.corpora import corpus_for
from tests.stand_ins import VISION_OPTIONS, random_export, write_published

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
    ("^make stage|^deepspeed |^torchrun ", "trains the full model, or needs hosts"),
    (
        "python launch/train.py --config launch/configs/toy",
        "continues `make demo`, and QUICK=1 trains less",
    ),
    ("from-packages|demo-pretrained", "has its own target, and needs packages of hundreds of megabytes"),
    ("evaluate .*(refcocog_test|hateful_memes)", "needs the corpora of all benchmarks"),
    ("from-deepspeed", "needs a folder that DeepSpeed wrote: tests/convert/test_deepspeed.py"),
    ("sbatch|srun|make slurm-stages(?!.*DRY_RUN)|test-slurm", "needs Slurm: make test-slurm"),
    ("^make (test|check|install|clean|lint|soak|bench|fuzz)", "has its own target, which takes minutes to hours"),
    ("^make (tensorboard|serve)", "does not end. `minigptv2 serve` is run instead"),
    ("^make demo($| [^Q])", "takes a quarter of an hour. QUICK=1 is run instead"),
    ("^minigptv2 replay", "needs a skipped step. tests/test_train.py has one"),
    ("pip install|apt-get", "changes the machine"),
)
"""Commands that the program does not run, by pattern, and why."""
ENDS_WITH = (("doctor --config launch/configs/stage", 1),)
"""Expected exit codes other than 0. Weights and shards of the full model are missing, which the command reports."""
RUN_AS_ONE = {"docs/your-own-data.md": "run as one script by tests/test_own_data_page.py"}
"""Pages whose commands must run one after the other, and what runs them."""


@dataclass(frozen=True)
class Command:
    """A command of a page. `whole`: it stands in a fenced block, so it can be run unchanged."""

    page: Path
    text: str
    whole: bool

    @property
    def words(self) -> list[str]:
        """The words without assignments before the program. The program is without its folder."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words.pop(0)
        if words:
            words[0] = words[0].removeprefix(".venv/bin/")
        return words

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}: {self.text}"


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of `languages`, without indentation."""
    found = _FENCE.findall(page.read_text())
    return [re.sub(f"^{indent}", "", body, flags=re.MULTILINE) for indent, named, body in found if named in languages]


def commands(page: Path) -> Iterator[Command]:
    """Every command of a page, in order: those of fenced blocks, then those in running text."""
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
    except ValueError:  # a log line with an apostrophe
        return ""
    return words[0] if words else ""


def links(page: Path) -> list[str]:
    """Targets of the page's links and images that are not web addresses."""
    return [target for target in _LINK.findall(_FENCE.sub("", page.read_text())) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def reason_not_run(command: Command) -> str | None:
    """Why a command is not run, or None if it is."""
    if why := RUN_AS_ONE.get(str(command.page.relative_to(REPOSITORY))):
        return why
    return next((why for pattern, why in NOT_HERE if re.search(pattern, command.text)), None)


def main() -> int:
    """Clone HEAD, make the quick demo there, and run every command that can run. The exit code is 1 if one fails."""
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
    found = [command for page in PAGES for command in commands(page) if command.whole or _is_complete(command)]
    unique = {command.text: command for command in [*prepare, *found]}
    failed = 0
    for number, command in enumerate(unique.values()):
        if why := reason_not_run(command):
            print(f"not run  {command}  ({why})", flush=True)
            continue
        began = time.monotonic()
        done = _serve(folder, command) if command.words[1] == "serve" else _run(folder, command)
        right = done.returncode == next((code for pattern, code in ENDS_WITH if re.search(pattern, command.text)), 0)
        failed += not right
        print(f"{'ok' if right else 'FAILED':8} {command}  {time.monotonic() - began:.0f} s", flush=True)
        if not right:
            print((done.stdout + done.stderr)[-3000:], flush=True)
        if number == 0:
            _add_inputs(folder)
    return 1 if failed else 0


def _is_complete(command: Command) -> bool:
    """Whether a command in running text can be run unchanged: it has no placeholder and nothing is missing."""
    if command.words[0] == "make":
        return True
    if any(word.isupper() or word.startswith("<") for word in command.words[1:]):
        return False
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            parse(command.words[1:])
        except SystemExit:
            return False
    return len(command.words) > 2


def _environment(folder: Path, command: Command) -> dict[str, str]:
    """The environment of a reader: the checkout's programs first on the path, and assignments before the command."""
    assigned = dict(re.findall(r"(?:^|\s)(\w+)=(\S+)", command.text.split(command.words[0])[0]))
    path = f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "DS_ACCELERATOR": "cpu", "PATH": path, "PYTHONPATH": "", **assigned}


def _run(folder: Path, command: Command) -> subprocess.CompletedProcess[str]:
    words = command.words
    if "from-published" in words and "--vision-heads" not in words and "--help" not in words:
        words += VISION_OPTIONS  # sizes of the small stand-in. The tables have those of the published files
    return subprocess.run(
        words, cwd=folder, env=_environment(folder, command), capture_output=True, text=True, input="", check=False
    )


def _serve(folder: Path, command: Command) -> subprocess.CompletedProcess[str]:
    """Start the server, request /health, and stop it with SIGINT, as Ctrl-C does."""
    with open(folder / "serve.log", "w+") as log:
        server = subprocess.Popen(
            command.words, cwd=folder, env=_environment(folder, command), stdout=log, stderr=log, text=True
        )
        deadline, healthy = time.monotonic() + 120, False
        while not healthy and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                healthy = urllib.request.urlopen("http://127.0.0.1:7860/health").status == 200
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(30)
        server.kill()
        log.seek(0)
        return subprocess.CompletedProcess(command.words, 0 if healthy else 1, log.read(), "")


def _add_inputs(folder: Path) -> None:
    """Write small versions of a reader's files: images, questions, answers to score, published weights, raw corpora."""
    image = (folder / "runs" / "demo" / "scene.png").read_bytes()
    for name in ("photo.jpg", "photo.png"):
        (folder / name).write_bytes(image)
    (folder / "requests.jsonl").write_text('{"image": "photo.jpg", "turns": [{"question": "[vqa] what is it?"}]}\n')
    cases = '{"image": "photo.jpg", "turns": [{"question": "[vqa] what is it?", "answer": "a bar"}]}\n'
    (folder / "cases.jsonl").write_text(cases)
    tokenizer = load_tokenizer(str(folder / "runs" / "demo" / "tokenizer"))
    write_published(folder, tokenizer)
    for published, other in (("eva_vit_g.pth", "vit.pth"), ("minigptv2_checkpoint.pth", "ckpt.pth")):
        shutil.copyfile(folder / published, folder / other)
    shutil.copytree(folder / "Llama-2-7b-chat-hf", folder / "llama")
    bases = folder / "small-bases"
    convert = [
        "convert",
        "from-published",
        "--vision",
        str(folder / "vit.pth"),
        *VISION_OPTIONS,
        "--language-model",
        str(folder / "llama"),
        "--output",
        str(bases),
    ]
    assert run_command(convert) == 0
    config = ModelConfig(
        vision_encoder=str(bases),
        vision_weights=str(bases),
        language_model=str(bases / "language_model"),
        language_weights=str(bases / "language_model"),
        lora=LoraConfig(r=4, alpha=8, dropout=0.0),
        trainable=["projector", "lora"],
    )
    export = random_export(folder / "runs" / "stage3_instruct" / "export", config, tokenizer)
    made: set[str] = set()
    for miniature in MINIATURES:
        if miniature.split == "train" and miniature.corpus not in made:
            miniature.make(folder / "raw")
            made.add(miniature.corpus)
    for row in (BENCHMARKS["refcoco_val"], BENCHMARKS["okvqa"]):
        corpus_for(row, folder / "raw" / row.corpus / row.split)
    earlier = [
        "evaluate",
        "--model",
        str(export),
        "--benchmark",
        "refcoco_val,okvqa",
        "--data",
        str(folder / "raw"),
        "--output",
        str(folder / "eval" / "stage2"),
    ]
    assert run_command(earlier) == 0


if __name__ == "__main__":
    sys.exit(main())
