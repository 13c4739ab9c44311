"""`minigptv2 mix`: the figures are those of the plan that trains, and the pictures exist."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigptv2.cli import main
from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.mix_report import collect_stats, format_table, mix, save_chart
from minigptv2.data.plan import DataPlan
from minigptv2.errors import ConfigError
from minigptv2.prompt import PromptEncoder
from minigptv2.record import Record, Turn
from minigptv2.shards.writer import Sample, write_corpus
from minigptv2.tokenizer import Tokenizer
from tests.conftest import REPOSITORY, World

RECIPE = Recipe(
    shuffle_window=2,
    corpora={
        "toy_refer": CorpusShare(ratio=2, task="refer", epochs=3),
        "toy_vqa": CorpusShare(ratio=1, task="vqa", schedule=[[0, 1], [20, 3]]),
        "toy_language": CorpusShare(ratio=1, task="language"),
    },
)


def test_the_figures_are_those_of_the_plan(world: World, tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, tokens_per_image=16, max_tokens=900)
    mixed = mix(RECIPE, collect_stats(RECIPE, world.train, {}, encoder, seed=0), steps=50, global_batch_size=12)
    plan = DataPlan(RECIPE, world.train, seed=0, global_batch_size=12)
    samples = plan.samples(0, 600)
    for number, row in enumerate(mixed.rows):
        mine = [sample for sample in samples if sample.corpus == number]
        assert row.samples == len(mine) and row.actual == len(mine) / 600
        assert abs(row.target - row.actual) < 0.005
        assert row.epochs == pytest.approx(len(mine) / 40)
        tokens = sum(len(plan.encode(sample, encoder)) for sample in mine)
        assert row.tokens == pytest.approx(tokens, rel=0.05)
        assert row.images == (0 if row.name == "toy_language" else len(mine))
    last = max(n for n, sample in enumerate(samples) if sample.corpus == 0)
    assert mixed.rows[0].samples == 120 and mixed.rows[0].ended == pytest.approx((last + 1) / 12)
    assert mixed.shares.shape == (48, 3) and np.allclose(mixed.shares.sum(axis=1), 1)
    assert mixed.shares[-1, 0] == 0 and mixed.shares[0, 1] < mixed.shares[-1, 1]


@pytest.mark.parametrize("file", sorted((REPOSITORY / "data_recipes").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_can_be_looked_at_before_its_shards_exist(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mix", str(file), "--steps", "20", "--shards", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "target %" in said and "sizes are from `minigptv2 shards list`" in said
    assert main(["mix", str(file), "--steps", "20", "--shards", str(tmp_path), "--json"]) == 0
    mixed = json.loads(capsys.readouterr().out)
    assert sum(row["samples"] for row in mixed["corpora"]) == 20 * 96
    assert mixed["without_shards"] == [row["name"] for row in mixed["corpora"]]


@pytest.mark.parametrize(
    ("line", "samples"),
    [
        ("refcoco: {ratio: 1, task: refer}", 42_404),
        ("refcoco: {ratio: 1, task: refer, sample_by: image}", 16_994),
        ("refcoco: {ratio: 1, task: refer, sample_by: image, share_images: 4}", 16_994),
        ("refcoco: {ratio: 1, task: refer, share_images: 4}", None),
        ("vqav2: {ratio: 1, task: vqa}", 443_757),
        ("ocr_vqa: {ratio: 1, task: vqa}", 801_550),
        ("visual_genome_refer: {ratio: 1, task: refer}", 5_408_689),
        ("text_caps: {ratio: 1, task: caption}", 21_953),
        ("text_caps: {ratio: 1, task: caption, sample_by: image}", 21_953),
        ("cc3m: {ratio: 1, task: caption}", None),
    ],
)
def test_sizes_without_shards_count_what_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, samples: int | None
) -> None:
    (tmp_path / "recipe.yaml").write_text(f"corpora: {{{line}}}")
    assert main(["mix", str(tmp_path / "recipe.yaml"), "--steps", "10", "--shards", str(tmp_path), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["corpora"][0]
    assert row["epochs"] == (pytest.approx(960 / samples) if samples else None)


def test_built_corpora_count_turns_and_the_images_they_need(tmp_path: Path) -> None:
    """Three images with 1, 2 and 5 turns, and one text with 2: a turn has an image as often as a record has one."""
    samples = []
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    for number, size in enumerate((1, 2, 5)):
        turns = tuple(Turn("vqa", f"what {n}", ("x",)) for n in range(size))
        samples.append(Sample(f"{number}", Record(turns, 8, 8, separate=True), buffer.getvalue()))
    samples.append(Sample("3", Record((Turn("language", "a", ("b",)), Turn("language", "c", ("d",))), separate=True)))
    write_corpus(samples, tmp_path / "asked", "asked")
    for line, size in ((CorpusShare(ratio=1), 10), (CorpusShare(ratio=1, sample_by="image"), 4)):
        stats = collect_stats(Recipe(corpora={"asked": line}), tmp_path, {}, None, seed=0)
        assert stats["asked"].samples == size and stats["asked"].images == round(0.75 * size)


def test_pictures(world: World, tmp_path: Path) -> None:
    mixed = mix(RECIPE, collect_stats(RECIPE, world.train, {}, None, seed=0), steps=50, global_batch_size=12)
    save_chart(mixed, tmp_path / "mix.png", "a title")
    with Image.open(tmp_path / "mix.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 3
    save_chart(mixed, tmp_path / "mix.html", "a <title>")
    page = (tmp_path / "mix.html").read_text()
    assert page.count("<polygon") == 3 and "a &lt;title&gt;" in page and "toy_refer" in page
    with pytest.raises(ConfigError, match=".png or .html"):
        save_chart(mixed, tmp_path / "mix.gif", "a title")
    strips = [line[-48:] for line in format_table(mixed).splitlines()[1:]]
    assert strips[0].startswith("█") and strips[0].endswith("  ") and strips[1].endswith("█")


def test_a_mixture_that_ends_before_the_run_is_refused(world: World) -> None:
    short = Recipe(corpora={"toy_vqa": CorpusShare(ratio=1, epochs=2)})
    with pytest.raises(ConfigError, match="at most 8 with batch size 10, got 9"):
        mix(short, collect_stats(short, world.train, {}, None, seed=0), steps=9, global_batch_size=10)
