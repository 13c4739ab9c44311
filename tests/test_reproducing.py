"""The page about reproducing the paper: URLs and licenses are those of the sources, times are those of the planner."""

from __future__ import annotations

import json
import re

import pytest

from minigptv2.cli import main
from minigptv2.corpora.sources import CORPORA
from minigptv2.evaluate.benchmarks import BENCHMARKS
from minigptv2.run_config import load_run_config
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "reproducing.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
EVALUATED = {benchmark.corpus for benchmark in BENCHMARKS.values()}
NEEDED = [name for name, spec in CORPORA.items() if spec.has_files and (spec.stages or name in EVALUATED)]
STAGES = {
    "1": "launch/configs/stage1_pretrain.yaml",
    "2": "launch/configs/stage2_multitask.yaml",
    "3": "launch/configs/stage3_instruct.yaml",
}
CLUSTERS = (("a100", 4), ("a100", 8), ("h100", 4), ("h100", 8))
"""The columns of the table of times."""


@pytest.mark.parametrize("name", NEEDED)
def test_every_corpus_has_its_stages_license_and_url(name: str) -> None:
    spec = CORPORA[name]
    (row,) = [row for row in ROWS if f"`{name}`" in row[0] and "http" in row[-1]]
    _, stages, license, url = row
    assert license == spec.license and url in spec.download
    assert set(map(str, spec.stages)) <= set(re.findall(r"\d", stages))
    assert spec.stages or "evaluation" in stages


@pytest.mark.parametrize("stage", STAGES)
def test_the_times_are_those_of_the_planner(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_run_config(REPOSITORY / STAGES[stage]).value
    (options,) = re.findall(rf"minigptv2 plan --config {STAGES[stage]} .*?(--tokens \d+ --supervised \d+)", PAGE)
    (row,) = [row for row in ROWS if row[0] == stage and "A100" in row[2]]
    assert row[1] == f"{config.train.steps:,}"
    for (gpu, gpus), cell in zip(CLUSTERS, row[3:7], strict=True):
        words = ["--config", str(REPOSITORY / STAGES[stage]), "--gpus", str(gpus), "--gpu", gpu, *options.split()]
        assert main(["plan", *words, "--json"]) == 0
        best = json.loads(capsys.readouterr().out)["options"]["zero2.json"]
        hours = best["step_s"] * config.train.steps / 3600
        stated = float(cell.removesuffix(" h"))
        assert stated == pytest.approx(hours, rel=0.02, abs=0.05), (gpu, gpus)
        assert best["memory_total_bytes"] / 2**30 == pytest.approx(float(row[7].removesuffix(" GiB")), abs=0.6)


def test_the_tables_of_the_paper_are_evaluated_completely() -> None:
    asked = set(",".join(re.findall(r"--benchmark (\S+)", PAGE)).split(","))
    assert {name for name, benchmark in BENCHMARKS.items() if benchmark.results} == asked
