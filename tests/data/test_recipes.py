"""The recipes of the three stages: which corpora, at which shares, as the paper's table and the published code say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from minigptv2.cli import main as cli
from minigptv2.corpora.sources import CORPORA
from minigptv2.data.config import Recipe
from minigptv2.data.mixture import Mixture
from minigptv2.data.plan import load_recipe
from minigptv2.run_config import load_run_config
from tests.conftest import REPOSITORY

STAGES = {1: "stage1_pretrain", 2: "stage2_multitask", 3: "stage3_instruct"}
LIGHT = {1: "stage1_light", 2: "stage2_light", 3: "stage3_light"}
WEAK = {"laion", "cc3m", "sbu", "grit_caption", "grit_refer", "grit_identify"}

SPEC_STAGE_3 = {
    "multitask_conversation": 3.75,
    "llava_conversation": 2.25,
    "llava_detail": 3.00,
    "llava_reasoning": 11.99,
    "unnatural_instructions": 0.37,
    "visual_genome_refer": 8.99,
    "flickr_grounded_caption": 5.99,
    "flickr_caption_to_phrase": 5.99,
    "flickr_phrase_to_box": 5.99,
    "coco_caption": 2.25,
    "text_caps": 6.74,
    "refcoco": 5.62,
    "refcoco_plus": 5.62,
    "refcocog": 5.62,
    "refcoco_identify": 2.25,
    "refcoco_plus_identify": 2.25,
    "refcocog_identify": 2.25,
    "vqav2": 3.37,
    "ok_vqa": 1.80,
    "aok_vqa": 2.70,
    "gqa": 11.24,
    "ocr_vqa": 6.74,
}
"""Shares of samples that the published ratios per batch give, in percent of all corpora but OCR-VQA."""
PUBLISHED_GRADIENT = {
    "conversation": 24.7,
    "refer": 15.8,
    "detection": 21.9,
    "identify": 4.1,
    "vqa": 15.8,
    "grounding": 11.0,
    "caption": 5.5,
    "language": 1.4,
}
"""Shares of the gradient by task, in percent, that the published code has in stage 3: the ratios of its batches."""


def recipe(name: str) -> Recipe:
    return load_recipe(REPOSITORY / "data_recipes" / f"{name}.yaml")


def shares(found: Recipe) -> dict[str, float]:
    """Percent of samples by corpus."""
    ratios = {name: float(share.ratio or 0) * (share.batch_size or 1) for name, share in found.corpora.items()}
    return {name: 100 * ratio / sum(ratios.values()) for name, ratio in ratios.items()}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_has_the_corpora_of_the_papers_table_and_no_other(stage: int) -> None:
    found = recipe(STAGES[stage])
    assert (found.unit, found.objective) == ("batch" if stage == 3 else "sample", "corpus")
    assert set(found.corpora) == {name for name, row in CORPORA.items() if stage in row.stages}


@pytest.mark.parametrize("name", [*STAGES.values(), *LIGHT.values()])
def test_a_recipes_tasks_are_the_corpora_s(name: str) -> None:
    for corpus, share in recipe(name).corpora.items():
        assert (share.task,) == CORPORA[corpus].tasks


def test_stage_3_has_the_shares_of_the_published_code() -> None:
    total = sum(SPEC_STAGE_3.values())
    found = shares(recipe(STAGES[3]))
    assert found.keys() == SPEC_STAGE_3.keys()
    for corpus, percent in SPEC_STAGE_3.items():
        assert found[corpus] * total / 100 == pytest.approx(percent, abs=0.1)


def test_stage_3_has_the_gradient_of_the_published_code() -> None:
    found = recipe(STAGES[3])
    gradient = dict(zip(found.corpora, Mixture(found, [None] * len(found.corpora)).loss_shares, strict=True))
    assert gradient == pytest.approx({name: share.ratio / 730 for name, share in found.corpora.items() if share.ratio})
    for task, percent in PUBLISHED_GRADIENT.items():
        ours = sum(gradient[name] for name, share in found.corpora.items() if share.task == task)
        assert 100 * ours == pytest.approx(percent, abs=0.06)


@pytest.mark.parametrize("names", [STAGES, LIGHT], ids=["full", "light"])
def test_light_stage_3_keeps_the_published_numbers_and_the_other_stages_state_their_own(names: dict[int, str]) -> None:
    full, found = recipe(STAGES[3]), recipe(names[3])
    for name, share in found.corpora.items():
        assert share == full.corpora[name] and share.loss_share is None
    for stage in (1, 2):
        for share in recipe(names[stage]).corpora.values():
            assert share.loss_share == share.ratio
        header = (REPOSITORY / "data_recipes" / f"{names[stage]}.yaml").read_text().split("unit:")[0]
        assert "`loss_share` repeats" in " ".join(header.replace("#", "").split())


@pytest.mark.parametrize("file", sorted((REPOSITORY / "data_recipes").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_recipe_states_its_objective(file: Path) -> None:
    assert re.search(r"^objective: (token|sample|corpus)$", file.read_text(), flags=re.M)


def test_stage_2_has_nothing_weakly_labelled_and_stage_1_mostly() -> None:
    assert not WEAK & set(recipe(STAGES[2]).corpora) and not WEAK & set(recipe(LIGHT[2]).corpora)
    for name in (STAGES[1], LIGHT[1]):
        assert sum(percent for corpus, percent in shares(recipe(name)).items() if corpus in WEAK) > 50


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("names", [STAGES, LIGHT], ids=["full", "light"])
def test_ratios_of_ours_are_percents_that_match_the_comments_above_them(stage: int, names: dict[int, str]) -> None:
    """A comment `# 38 %: refer` heads the lines whose ratios add up to it."""
    text = (REPOSITORY / "data_recipes" / f"{names[stage]}.yaml").read_text()
    assert sum(float(share.ratio or 0) for share in recipe(names[stage]).corpora.values()) == pytest.approx(100)
    blocks = re.split(r"^  # (?=\d+ %: )", text, flags=re.M)[1:]
    for block in blocks:
        stated = float(block.split(" %", 1)[0])
        assert sum(map(float, re.findall(r"ratio: ([\d.]+)", block))) == pytest.approx(stated)
    assert blocks or names is LIGHT


@pytest.mark.parametrize("name", [STAGES[1], STAGES[2], LIGHT[1]])
def test_every_ratio_of_ours_has_its_reason_beside_it(name: str) -> None:
    lines = (REPOSITORY / "data_recipes" / f"{name}.yaml").read_text().splitlines()
    ratios = [line for line in lines if "ratio:" in line]
    questions = 5 if name == LIGHT[1] else 0  # said once above them
    assert sum("#" in line for line in ratios) >= len(ratios) - questions + (1 if questions else 0)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_light_variants_do_without_laion_and_grit(stage: int) -> None:
    light, full = set(recipe(LIGHT[stage]).corpora), set(recipe(STAGES[stage]).corpora)
    assert light < full and not {"laion", "grit_caption", "grit_refer", "grit_identify"} & light


@pytest.mark.parametrize("stage", [2, 3])
def test_a_stage_says_when_the_one_before_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: int
) -> None:
    from minigptv2.cli.train import main

    monkeypatch.chdir(REPOSITORY)
    config = load_run_config(f"launch/configs/{STAGES[stage]}.yaml").value
    assert config.init_from == f"runs/{STAGES[stage - 1]}/export"
    before = tmp_path / "runs/before/export"
    assert main(["--config", f"launch/configs/{STAGES[stage]}.yaml", f"init_from={before}"]) == 4
    told = capsys.readouterr().out
    assert f"{STAGES[stage]} starts from init_from={before}, but there is no such export: the previous stage" in told


def test_mix_prints_the_shares_of_stage_3_before_anything_is_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "mix",
        str(REPOSITORY / "data_recipes/stage3_instruct.yaml"),
        "--shards",
        str(tmp_path),
        "--steps",
        "35000",
    ]
    assert cli([*words, "--global-batch-size", "24"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said.splitlines() if line.split()[:1]}
    total = sum(SPEC_STAGE_3.values())
    assert "ratios by batch, sum 730, temperature 1; objective corpus\n" in said
    assert "shares of tokens, supervised are unknown" in said
    for corpus, percent in SPEC_STAGE_3.items():
        target, actual, tokens, supervised, objective = rows[corpus].split()[3:8]
        assert (tokens, supervised) == ("-", "-")
        target, actual, objective = map(float, (target, actual, objective))
        assert objective == pytest.approx(100 * (recipe(STAGES[3]).corpora[corpus].ratio or 0) / 730, abs=0.05)
        assert target * total / 100 == pytest.approx(percent, abs=0.1)
        assert actual * total / 100 == pytest.approx(percent, abs=0.1)
    for task, percent in PUBLISHED_GRADIENT.items():
        assert float(rows[task].split()[-1]) == pytest.approx(percent, abs=0.1)


@pytest.mark.parametrize("stage", STAGES.values())
def test_the_epochs_in_the_comments_are_those_of_the_stage(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Epochs count samples: turns of corpora with several per image. Corpora of links have no known size."""
    file = REPOSITORY / "data_recipes" / f"{stage}.yaml"
    train = load_run_config(REPOSITORY / "launch" / "configs" / f"{stage}.yaml").value.train
    size = ["--steps", str(train.steps), "--global-batch-size", str(train.global_batch_size)]
    assert cli(["mix", str(file), *size, "--shards", "nowhere", "--json"]) == 0
    epochs = {row["name"]: row["epochs"] for row in json.loads(capsys.readouterr().out)["corpora"]}
    stated = re.findall(r"^  (\w+): .*#.* (\d+) epochs", file.read_text(), re.M)
    assert stage != STAGES[1] or len(stated) >= 3
    for name, number in stated:
        assert epochs[name] == pytest.approx(int(number), abs=0.51), name
