"""The commands, links and paths of the documentation; run as a program it executes the commands in a clean checkout.

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
    ("python launch/train.py --config launch/configs/toy", "goes on with what `make demo` trains; QUICK=1 trains less"),
    ("from-packages|demo-pretrained", "a target of its own, and packages of hundreds of megabytes"),
    ("from-deepspeed", "its folder is one that DeepSpeed wrote: tests/convert/test_deepspeed.py"),
    ("sbatch|srun|make slurm-stages(?!.*DRY_RUN)|test-slurm", "needs Slurm: make test-slurm"),
    ("^make (test|check|install|clean|lint|soak|bench|fuzz)", "a target of its own, minutes to hours"),
    ("^make (tensorboard|serve)", "never ends; `minigptv2 serve` is run"),
    ("^make demo($| [^Q])", "a quarter of an hour; QUICK=1 is run instead"),
    ("^minigptv2 replay", "needs what a discarded step leaves; the tests have it"),
    ("pip install|apt-get", "changes the machine"),
)
"""Commands that the program does not execute, by pattern, and why."""
ENDS_WITH = (("doctor --config launch/configs/stage", 1),)
"""Exit codes other than 0 that are right here: there are no weights and shards of the full model, and it says so."""
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
    """Whether a command in running text can be run as it stands: no placeholder, nothing missing."""
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
    """As a reader's: the checkout's environment first on the path, and what stands before the command."""
    assigned = dict(re.findall(r"(?:^|\s)(\w+)=(\S+)", command.text.split(command.words[0])[0]))
    path = f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "DS_ACCELERATOR": "cpu", "PATH": path, "PYTHONPATH": "", **assigned}


def _run(folder: Path, command: Command) -> subprocess.CompletedProcess[str]:
    words = command.words
    if "from-published" in words and "--vision-heads" not in words and "--help" not in words:
        words += VISION_OPTIONS  # of the small stand-in; the published files' sizes are a row of the tables
    return subprocess.run(
        words, cwd=folder, env=_environment(folder, command), capture_output=True, text=True, input="", check=False
    )


def _serve(folder: Path, command: Command) -> subprocess.CompletedProcess[str]:
    """Start the server, ask whether it is well, and stop it as Ctrl-C does."""
    with open(folder / "serve.log", "w+") as log:
        server = subprocess.Popen(
            command.words, cwd=folder, env=_environment(folder, command), stdout=log, stderr=log, text=True
        )
        deadline, well = time.monotonic() + 120, False
        while not well and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                well = urllib.request.urlopen("http://127.0.0.1:7860/health").status == 200
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(30)
        server.kill()
        log.seek(0)
        return subprocess.CompletedProcess(command.words, 0 if well else 1, log.read(), "")


def _add_inputs(folder: Path) -> None:
    """What a reader would bring, small: photographs, questions, answers to score, published weights, raw corpora."""
    picture = (folder / "runs" / "demo" / "scene.png").read_bytes()
    for name in ("photo.jpg", "photo.png"):
        (folder / name).write_bytes(picture)
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
