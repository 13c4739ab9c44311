"""`minigptv2 mix`: the figures are those of the plan that trains, and the pictures exist."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigptv2.cli import main
from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.mix_report import SHARES, collect_stats, format_table, mix, save_chart, shares_by_task
from minigptv2.data.objective import OBJECTIVES, Composition
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


def with_objective(objective: str, share_images: int = 1) -> Recipe:
    shares = {"toy_refer": 5.0, "toy_vqa": 1.0, "toy_language": 4.0}
    lines = {
        name: CorpusShare(ratio=1, share_images=share_images, loss_share=share if objective == "corpus" else None)
        for name, share in shares.items()
    }
    return Recipe(shuffle_window=2, objective=objective, corpora=lines)


@pytest.mark.parametrize("share_images", [1, 2])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_shares_are_those_of_the_batches(
    world: World, tokenizer: Tokenizer, objective: str, share_images: int
) -> None:
    recipe = with_objective(objective, share_images)
    encoder = PromptEncoder(tokenizer, tokens_per_image=16, max_tokens=900)
    mixed = mix(recipe, collect_stats(recipe, world.train, {}, encoder, seed=0), steps=10, global_batch_size=60)
    plan = DataPlan(recipe, world.train, seed=0, encoder=encoder)
    samples = plan.samples(0, 600)
    examples = [plan.encode(sample, encoder) for sample in samples]
    found = Composition.of(examples, [sample.corpus for sample in samples], 3)
    for number, row in enumerate(mixed.rows):
        mine = [e for e, sample in zip(examples, samples, strict=True) if sample.corpus == number]
        assert row.actual == pytest.approx(found.corpus_samples[number] / 600)
        assert row.token_share == pytest.approx(sum(map(len, mine)) / sum(map(len, examples)), abs=0.01)
        supervised = sum(e.num_supervised for e in mine) / sum(e.num_supervised for e in examples)
        assert row.supervised_share == pytest.approx(supervised, abs=0.01)
        objective_share = found.corpus_weights[number] / found.corpus_weights.sum()
        assert row.objective_share == pytest.approx(objective_share, abs=0.01)
        assert row.shares == (row.actual, row.token_share, row.supervised_share, row.objective_share)
    tasks = shares_by_task(mixed)
    assert tasks["mixed"] == pytest.approx(dict.fromkeys(SHARES, 1.0))


@pytest.mark.parametrize(
    ("objective", "known"),
    [("token", {"samples"}), ("sample", {"samples", "objective"}), ("corpus", {"samples", "objective"})],
)
def test_shares_that_are_unknown_say_so(
    objective: str, known: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    lines = {
        name: {"ratio": line.ratio, "task": name.removeprefix("toy_")}
        | ({"loss_share": line.loss_share} if line.loss_share else {})
        for name, line in with_objective(objective).corpora.items()
    }
    file.write_text(json.dumps({"objective": objective, "corpora": lines}))
    words = ["mix", str(file), "--steps", "20", "--shards", str(tmp_path), "--output", str(tmp_path / "mix.html")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"; objective {objective}\n" in said
    assert f"shares of {', '.join(name for name in SHARES if name not in known)} are unknown: --tokenizer" in said
    page = (tmp_path / "mix.html").read_text()
    for name in SHARES:
        assert (f">{name}: unknown<" in page) == (name not in known)
        assert page.count(f"% of {name}</title>") == (3 if name in known else 0)
    assert main([*words[:-2], "--json"]) == 0
    mixed = json.loads(capsys.readouterr().out)
    assert mixed["objective"] == objective
    assert {name for name, share in mixed["tasks"]["vqa"].items() if share is not None} == known
    for row in mixed["corpora"]:
        assert (row["objective_share"] is not None) == ("objective" in known) and row["supervised_share"] is None
    if objective == "corpus":
        assert [row["objective_share"] for row in mixed["corpora"]] == pytest.approx([0.5, 0.1, 0.4], abs=0.01)


def test_the_recipe_can_give_all_lengths(tmp_path: Path) -> None:
    """Without shards: `tokens` and `supervised_tokens` of the lines are enough."""
    lines = {
        "toy_vqa": CorpusShare(ratio=1, loss_share=1, tokens=30, supervised_tokens=2),
        "toy_refer": CorpusShare(ratio=3, loss_share=1, tokens=10, supervised_tokens=6),
    }
    recipe = Recipe(objective="corpus", corpora=lines)
    expected = {"toy_vqa": 50, "toy_refer": 50}
    mixed = mix(recipe, collect_stats(recipe, tmp_path, expected, None, seed=0), steps=10, global_batch_size=40)
    assert [row.shares for row in mixed.rows] == [
        pytest.approx((0.25, 0.5, 0.1, 0.5)),
        pytest.approx((0.75, 0.5, 0.9, 0.5)),
    ]


def test_a_mixture_that_ends_before_the_run_is_refused(world: World) -> None:
    short = Recipe(corpora={"toy_vqa": CorpusShare(ratio=1, epochs=2)})
    with pytest.raises(ConfigError, match="at most 8 with batch size 10, got 9"):
        mix(short, collect_stats(short, world.train, {}, None, seed=0), steps=9, global_batch_size=10)
