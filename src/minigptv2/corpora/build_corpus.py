"""From a corpus's original files to shards: drafts in, a corpus folder and a report of what was kept and lost out.

The annotations are read in this process, pictures in the writer's. What was read is held against what a complete
download has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, finish
from minigptv2.errors import ConfigError, DataError, MissingFilesError
from minigptv2.shards.dropped import Dropped, summarize
from minigptv2.shards.manifest import MANIFEST_FILE, Manifest, parse_manifest
from minigptv2.shards.writer import Rejected, write_corpus

MANY_LOST = 0.2
"""A larger share of annotations lost is likely a misplaced folder and is said so."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did. `read` counts annotations as the corpus counts them; `expected` is None where nobody knows."""

    corpus: CorpusSpec
    split: str
    manifest: Manifest
    read: int
    expected: int | None
    dropped: dict[str, int]
    seconds: float

    def lines(self) -> list[str]:
        """The summary, a line each."""
        manifest, unit = self.manifest, self.corpus.counted
        turns = ", ".join(f"{count:,} {task}" for task, count in manifest.turns.items())
        rate = manifest.samples / max(1e-9, self.seconds)
        expected = f" of {self.expected:,} expected" if self.expected is not None else ""
        lines = [
            f"{self.corpus.name} {self.split}: read {self.read:,} {unit}{expected}",
            f"kept {manifest.samples:,} samples in {len(manifest.shards)} shards, "
            f"{manifest.shards.bytes / 2**20:,.1f} MiB, in {self.seconds:.1f} s ({rate:,.0f} a second); turns: {turns}",
        ]
        lines += [f"dropped {count:,}: {reason}" for reason, count in self.dropped.items()]
        return lines + [f"warning: {warning}" for warning in self.warnings()]

    def warnings(self) -> list[str]:
        """What looks wrong about the counts."""
        found = []
        if self.expected is not None and self.read != self.expected:
            found.append(
                f"a complete download has {self.expected:,} {self.corpus.counted}, this one {self.read:,}: files are "
                "missing, cut off, or of another version"
            )
        lost = sum(self.dropped.values())
        if lost > MANY_LOST * max(1, self.read):
            reason = next(iter(self.dropped))
            found.append(f"{lost:,} of {self.read:,} were dropped, most as '{reason}'. {self.corpus.download}")
        return found


def build(
    corpus: CorpusSpec,
    root: Path,
    split: str,
    output: Path,
    *,
    workers: int = 0,
    samples_per_shard: int = 0,
    limit: int | None = None,
    per_question: bool = False,
    bake_side: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> BuildReport:
    """Build a split of `corpus` from the files below `root` into the folder `output`.

    `limit` stops after so many drafts (pictures, conversations). `per_question` stores a sample for each separate
    question, its picture again with each. `progress` is told of annotations as they are read. An interrupted build
    goes on where it was. Raises `ConfigError` for an unknown split and where `output` holds something else,
    `MissingFilesError` where files are missing, and `DataError` where they cannot be read.
    """
    if split not in corpus.expected:
        raise ConfigError(f"{corpus.name} has no split '{split}'; it has {', '.join(corpus.expected)}")
    _refuse_another_corpus(corpus, split, output)
    began = time.monotonic()
    read = 0

    def counted() -> Iterator[Draft | Rejected]:
        nonlocal read
        for item in islice(_readable(corpus, root, split), limit):
            read += item.annotations
            if progress is not None:
                progress(item.annotations)
            yield from _split(item) if per_question and isinstance(item, Draft) else (item,)

    reasons: dict[str, Dropped] = {}

    def lose(one: Dropped) -> None:  # one entry a reason, however many are lost
        known = reasons.get(one.reason)
        reasons[one.reason] = one if known is None else replace(known, count=known.count + one.count)

    manifest = write_corpus(
        counted(),
        output,
        corpus.name,
        samples_per_shard=samples_per_shard or corpus.samples_per_shard,
        license=corpus.license,
        split=split,
        workers=workers,
        finish=finish,
        bake_side=bake_side,
        on_dropped=lose,
    )
    expected = None if limit is not None else corpus.expected[split]
    return BuildReport(corpus, split, manifest, read, expected, summarize(reasons.values()), time.monotonic() - began)


def finished(output: Path) -> Manifest | None:
    """What a folder holds whole. None also where its manifest is damaged or of an older format: it is built anew."""
    try:
        return parse_manifest(output) if (output / MANIFEST_FILE).is_file() else None
    except DataError:
        return None


def _refuse_another_corpus(corpus: CorpusSpec, split: str, output: Path) -> None:
    """Nobody's training set is to be lost to a forgotten word."""
    there = finished(output)
    if there is not None and (there.corpus != corpus.name or there.split not in ("", split)):
        raise ConfigError(
            f"{output} holds {there.title}; build {corpus.name} {split} into another --output, or remove that folder"
        )


def _readable(corpus: CorpusSpec, root: Path, split: str) -> Iterator[Draft | Rejected]:
    """The corpus's drafts. Whatever its reader stumbles over is an error that says so, not a bug of this program."""
    last = ""
    try:
        for item in corpus.drafts(corpus.raw(root), split):
            yield item
            last = item.key if isinstance(item, Draft) else item.where
    except MissingFilesError as error:
        if not last:
            raise
        raise DataError(str(error)) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        after = f"after '{last}'" if last else "the first one"
        raise DataError(
            f"{corpus.name}: an annotation, {after}, is not in a layout that is read ({type(error).__name__}: {error})"
            f". Is the file whole and the right one? {corpus.download}"
        ) from error


def _split(draft: Draft) -> Iterator[Draft]:
    """A draft for each separate turn."""
    if not draft.separate or len(draft.turns) == 1:
        yield draft
        return
    for number, turn in enumerate(draft.turns):
        yield replace(draft, key=f"{draft.key}-{number}", turns=(turn,), separate=False)
