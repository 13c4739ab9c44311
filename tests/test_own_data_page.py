"""Tests `docs/your-own-data.md` by running its commands unchanged in an empty folder, up to a prediction."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "your-own-data.md"


@pytest.mark.soak
def test_a_person_who_follows_the_page_ends_with_a_prediction(tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), flags=re.S | re.M)
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "REPO": str(REPOSITORY),
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    script = "set -euo pipefail\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kept 720 samples" in done.stdout and "shards/my: intact" in done.stdout
    losses = [float(found) for found in re.findall(r"step \d+  loss ([\d.]+)", done.stdout)]
    assert losses[-1] < 0.5 * losses[0]
    answers = done.stdout.split("export my (")[1].splitlines()[1:]
    assert answers[0] == "green", "the square of the first image, as the page's seed draws it"
    assert re.fullmatch(r"\{(<\d+>){4}\}", answers[1]) and "drawn 1 box(es) in answer.png" in answers
    assert (tmp_path / "answer.png").is_file() and (tmp_path / "shards/my/preview.html").is_file()
