"""Computes METEOR 1.5 with the official Java program, which includes WordNet's synonyms and a paraphrase table.

`pip install 'minigptv2[metrics]'` installs the program (`pycocoevalcap`). Java must be installed separately.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from minigptv2.errors import ConfigError
from minigptv2.evaluate.metrics.texts import tokenize

_JAR = "meteor-1.5.jar"


def meteor(candidates: list[str], references: list[list[str]]) -> tuple[float, list[float]]:
    """METEOR, 0..1, of the corpus and of each caption. Raises `ConfigError` if the program or Java is missing."""
    command = meteor_command()
    lines = []
    for text, several in zip(candidates, references, strict=True):
        words = _normalized(text)
        lines.append(" ||| ".join(("SCORE", *(_normalized(one) for one in several), words)))
    statistics = _ask(command, lines)
    answers = _ask(command, [" ||| ".join(("EVAL", *statistics))])
    if len(answers) != len(candidates) + 1:
        raise ConfigError(f"expected {len(candidates) + 1} scores from {_JAR}, got {len(answers)}")
    *each, corpus = (float(answer) for answer in answers)
    return corpus, each


def meteor_command() -> list[str]:
    """The command line of the program. Raises `ConfigError` if the program or Java is missing."""
    spec = importlib.util.find_spec("pycocoevalcap")
    places = list(spec.submodule_search_locations or []) if spec else []
    jar = next((Path(place) / "meteor" / _JAR for place in places), None)
    java = shutil.which("java")
    if jar is None or not jar.is_file() or java is None:
        missing = "Java" if jar and jar.is_file() else "pycocoevalcap: pip install 'minigptv2[metrics]'"
        raise ConfigError(f"METEOR needs {missing}. Remove --meteor to evaluate without it.")
    return [java, "-jar", "-Xmx2G", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]


def _normalized(text: str) -> str:
    return " ".join(tokenize(text)).replace("|||", "").replace("  ", " ")


def _ask(command: list[str], lines: list[str]) -> list[str]:
    done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{_JAR} failed: {done.stderr.strip()[-300:] or f'exit code {done.returncode}'}")
    return done.stdout.split("\n")[:-1]
