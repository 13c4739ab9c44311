"""An evaluation as one thing: benchmarks or held-out corpora in, a folder of predictions, tables and a page out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minigptv2.cluster import distributed
from minigptv2.errors import ConfigError
from minigptv2.evaluate.benchmarks import Benchmark, heldout_spec
from minigptv2.evaluate.html import PAGE_FILE, write_page
from minigptv2.evaluate.metrics.meteor import meteor, meteor_command
from minigptv2.evaluate.questions import corpus_folder
from minigptv2.evaluate.runner import Outcome, Settings, evaluate_benchmark
from minigptv2.evaluate.tables import summary, table, write_tables
from minigptv2.files import wait_until_seen
from minigptv2.predict.predictor import Predictor
from minigptv2.shards.manifest import load_manifest


@dataclass(frozen=True)
class Job:
    """A benchmark and the corpus folder it is read from."""

    row: Benchmark
    corpus: Path


def benchmark_jobs(rows: Sequence[Benchmark], data: Path, cache: Path) -> list[Job]:
    """Jobs of benchmarks. The main rank builds, below `cache`, the shards that `data` lacks, of the originals there."""
    folders, sizes = distributed.on_main(
        lambda: _with_sizes([corpus_folder(data, r.corpus, r.split, cache) for r in rows])
    )
    for file, num_bytes in sizes:  # just written by the main rank, perhaps
        wait_until_seen(Path(file), num_bytes)
    return [Job(row, Path(folder)) for row, folder in zip(rows, folders, strict=True)]


def _with_sizes(folders: Sequence[Path]) -> tuple[list[str], list[tuple[str, int]]]:
    """The folders, and the files in them with their sizes."""
    files = [file for folder in dict.fromkeys(folders) for file in sorted(folder.iterdir()) if file.is_file()]
    return [str(folder) for folder in folders], [(str(file), file.stat().st_size) for file in files]


def held_out_jobs(shards: Path, corpora: Sequence[str]) -> list[Job]:
    """Jobs of corpus folders below `shards`: one per task that a corpus holds."""
    return [
        Job(heldout_spec(corpus, task), shards / corpus)
        for corpus in corpora
        for task in load_manifest(shards / corpus).turns
    ]


def evaluate_all(
    predictor: Predictor,
    jobs: Sequence[Job],
    output: Path,
    settings: Settings,
    *,
    with_meteor: bool = False,
    samples: int = 12,
) -> list[dict[str, Any]]:
    """Evaluate each job below `output`; on the main rank, write tables and page and return the summaries.

    `with_meteor` adds METEOR to captions; `samples` are the worst and the random ones on the page, each.
    """
    if settings.batch_size < 1:
        raise ConfigError(f"batch size {settings.batch_size}: want at least 1")
    if with_meteor:
        meteor_command()  # what is missing is said before the hours, not after
    outcomes = []
    for job in jobs:
        outcome = evaluate_benchmark(predictor, job.row, job.corpus, output / job.row.name, settings)
        if outcome is not None:
            outcomes.append(_with_meteor(outcome) if with_meteor else outcome)
            print(table([summary(outcomes[-1])]), flush=True)
    if not distributed.is_main():
        return []
    summaries = [summary(outcome) for outcome in outcomes]
    write_tables(summaries, output)
    write_page(outcomes, summaries, output / PAGE_FILE, samples=samples)
    return summaries


def _with_meteor(outcome: Outcome) -> Outcome:
    """The outcome of a caption benchmark with `meteor` among its figures; of another, as it is."""
    if outcome.row.protocol == "caption":
        references = [list(question.turn.answers) for question in outcome.questions]
    elif outcome.row.protocol == "identify":
        references = [list(question.turn.regions[0].phrases) for question in outcome.questions]
    else:
        return outcome
    corpus, each = meteor([reply.answer for reply in outcome.replies], references)
    scored = outcome.scored
    figures = [{**one, "meteor": value} for one, value in zip(scored.each, each, strict=True)]
    return replace(outcome, scored=replace(scored, each=figures, overall={**scored.overall, "meteor": corpus}))
