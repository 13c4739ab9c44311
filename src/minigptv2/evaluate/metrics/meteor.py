"""METEOR 1.5, by the official Java program: it needs WordNet's synonyms and a table of paraphrases that come with it.

`pip install 'minigptv2[metrics]'` brings the program (`pycocoevalcap`); Java has to be there.
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
    """METEOR, 0..1, of the corpus and of each caption. Raises `ConfigError` without the program or Java."""
    command = meteor_command()
    lines = []
    for text, several in zip(candidates, references, strict=True):
        words = _spoken(text)
        lines.append(" ||| ".join(("SCORE", *(_spoken(one) for one in several), words)))
    statistics = _ask(command, lines)
    answers = _ask(command, [" ||| ".join(("EVAL", *statistics))])
    if len(answers) != len(candidates) + 1:
        raise ConfigError(f"{_JAR} answered {len(answers)} scores to {len(candidates)} captions")
    *each, corpus = (float(answer) for answer in answers)
    return corpus, each


def meteor_command() -> list[str]:
    """The program's command line."""
    spec = importlib.util.find_spec("pycocoevalcap")
    places = list(spec.submodule_search_locations or []) if spec else []
    jar = next((Path(place) / "meteor" / _JAR for place in places), None)
    java = shutil.which("java")
    if jar is None or not jar.is_file() or java is None:
        missing = "Java" if jar and jar.is_file() else "pycocoevalcap: pip install 'minigptv2[metrics]'"
        raise ConfigError(f"METEOR needs {missing}; leave --meteor out to do without")
    return [java, "-jar", "-Xmx2G", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]


def _spoken(text: str) -> str:
    return " ".join(tokenize(text)).replace("|||", "").replace("  ", " ")


def _ask(command: list[str], lines: list[str]) -> list[str]:
    done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{_JAR}: {done.stderr.strip()[-300:] or f'exit code {done.returncode}'}")
    return done.stdout.split("\n")[:-1]
