"""Runs an evaluation: benchmarks or held-out corpora in, a folder of predictions, tables and a page out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minigptv2.cluster import distributed
from minigptv2.errors import ConfigError
from minigptv2.evaluate.benchmarks import heldout_spec
from minigptv2.evaluate.html import PAGE_FILE, write_page
from minigptv2.evaluate.metrics.meteor import meteor, meteor_command
from minigptv2.evaluate.protocols import Benchmark
from minigptv2.evaluate.questions import corpus_folder
from minigptv2.evaluate.runner import BenchmarkResult, Settings, evaluate_benchmark
from minigptv2.evaluate.tables import summary, table, write_tables
from minigptv2.files import wait_until_seen
from minigptv2.predict.predictor import Predictor
from minigptv2.shards.manifest import load_manifest


@dataclass(frozen=True)
class Job:
    """A benchmark and the corpus folder that holds its questions."""

    spec: Benchmark
    corpus: Path


def benchmark_jobs(specs: Sequence[Benchmark], data: Path, cache: Path) -> list[Job]:
    """The jobs of benchmarks.

    Shards that `data` lacks are built in `cache`, by the main rank, from the original files in `data`. Raises
    `DataError` if a corpus is not there in either form.
    """
    folders, sizes = distributed.on_main(
        lambda: _with_sizes([corpus_folder(data, spec.corpus, spec.split, cache) for spec in specs])
    )
    for file, num_bytes in sizes:  # the main rank may just have written them, and a shared file system can lag
        wait_until_seen(Path(file), num_bytes)
    return [Job(spec, Path(folder)) for spec, folder in zip(specs, folders, strict=True)]


def _with_sizes(folders: Sequence[Path]) -> tuple[list[str], list[tuple[str, int]]]:
    """The folders, and the files in them with their sizes in bytes."""
    files = [file for folder in dict.fromkeys(folders) for file in sorted(folder.iterdir()) if file.is_file()]
    return [str(folder) for folder in folders], [(str(file), file.stat().st_size) for file in files]


def heldout_jobs(shards: Path, corpora: Sequence[str]) -> list[Job]:
    """The jobs of corpus folders in `shards`: one for each task that a corpus contains."""
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
    """Evaluate each job in a folder of `output`. The main rank writes tables and page and returns the summaries.

    `with_meteor` adds METEOR to caption benchmarks. `samples` is the number of worst and of random samples on the page.
    """
    if settings.batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {settings.batch_size}")
    if with_meteor:
        meteor_command()  # fail now if Java or the program is missing, not after hours of generation
    for job in jobs:
        if job.spec.scoring.check is not None:
            job.spec.scoring.check()
    results = []
    for job in jobs:
        result = evaluate_benchmark(predictor, job.spec, job.corpus, output / job.spec.name, settings)
        if result is not None:
            results.append(_with_meteor(result) if with_meteor else result)
            print(table([summary(results[-1])]), flush=True)
    if not distributed.is_main():
        return []
    summaries = [summary(result) for result in results]
    write_tables(summaries, output)
    write_page(results, summaries, output / PAGE_FILE, samples=samples)
    return summaries


def _with_meteor(result: BenchmarkResult) -> BenchmarkResult:
    """The result with `meteor` among its metrics if the benchmark scores captions, else unchanged."""
    references_of = result.spec.scoring.references
    if references_of is None:
        return result
    references = [references_of(question) for question in result.questions]
    corpus, each = meteor([prediction.answer for prediction in result.predictions], references)
    scored = result.scored
    metrics = [{**one, "meteor": value} for one, value in zip(scored.each, each, strict=True)]
    return replace(result, scored=replace(scored, each=metrics, overall={**scored.overall, "meteor": corpus}))
