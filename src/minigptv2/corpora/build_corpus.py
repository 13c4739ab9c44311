"""Builds a corpus folder from original files, and reports what was kept and what was dropped.

This process reads the annotations, and the writer processes read the images. The number of annotations is compared with
that of a complete download.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from minigptv2.corpora.box_census import MAX_SHARE
from minigptv2.corpora.corpus import MIXED, CorpusSpec
from minigptv2.corpora.draft import Draft, finish
from minigptv2.corpora.frames import CUT, SCALED
from minigptv2.corpora.raw import Raw
from minigptv2.errors import ConfigError, DataError, MissingFilesError, counted
from minigptv2.shards.dropped import Dropped, summarize
from minigptv2.shards.manifest import MANIFEST_FILE, Manifest, parse_manifest
from minigptv2.shards.passed_over import MAX_NAMED, first_names
from minigptv2.shards.shard_file import BOXES
from minigptv2.shards.tar_samples import at_least
from minigptv2.shards.writer import CorpusOptions, ImageRules, RefusedBuild, Rejected, write_corpus
from minigptv2.tasks import TASKS

MAX_SHOWN = 30
"""Mistakes that an error lists."""
MANY_DROPPED = 0.2
"""A larger share of dropped annotations gives a warning, since it is likely caused by a misplaced folder."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did. `read` counts annotations in the corpus's unit. `expected` is None if it is unknown."""

    corpus: CorpusSpec
    split: str
    manifest: Manifest
    read: int
    expected: int | None
    dropped: dict[str, int]
    seconds: float
    notes: tuple[str, ...] = ()
    """What was passed over without loss, one line each."""
    layout: tuple[str, ...] = ()
    """Which files were read, and in which layout."""
    corrected: dict[str, list[str]] = field(default_factory=dict)
    """The first samples for each count of corrections."""

    def lines(self) -> list[str]:
        """The summary, line by line."""
        manifest, unit = self.manifest, self.corpus.counted
        turns = ", ".join(f"{count:,} {task}" for task, count in manifest.turns.items())
        rate = manifest.samples / max(1e-9, self.seconds)
        expected = f" of {self.expected:,} expected" if self.expected is not None else ""
        samples, shards = counted(manifest.samples, "samples"), counted(len(manifest.shards), "shards")
        lines = [
            f"{self.corpus.name} {self.split}: read {counted(self.read, unit)}{expected}",
            *self.layout,
            f"kept {samples} in {shards}, "
            f"{manifest.shards.bytes / 2**20:,.1f} MiB, in {self.seconds:.1f} s ({rate:,.0f} a second); turns: {turns}",
        ]
        lines += [f"dropped {at_least(reason, count)}: {reason}" for reason, count in self.dropped.items()]
        lines += [
            f"corrected {count:,}: {what}: {first_names(self.corrected.get(what, []), count)}"
            for what, count in manifest.counts.items()
            if what != BOXES
        ]
        lines += self.notes
        return lines + [f"warning: {warning}" for warning in self.warnings()]

    def warnings(self) -> list[str]:
        """Why the counts look wrong, if they do."""
        found = []
        if self.expected is not None and self.read != self.expected:
            found.append(
                f"a complete download has {self.expected:,} {self.corpus.counted}, this one has {self.read:,}: files "
                "are missing, truncated, or of another version"
            )
        if scaled := self.manifest.counts.get(SCALED):
            images = f"{scaled:,} image{'s' if scaled > 1 else ''}"
            found.append(f"the file states another size of {images}: boxes were scaled to the image")
        cut, boxes = (self.manifest.counts.get(key, 0) for key in (CUT, BOXES))
        if cut > MAX_SHARE * boxes:
            found.append(
                f"{cut:,} of {boxes:,} boxes ({100 * cut / boxes:.3g} %) left their image by more than a pixel and "
                "were cut at its border: the boxes may belong to other images or to another size"
            )
        dropped = sum(self.dropped.values())
        if dropped > MANY_DROPPED * max(1, self.read):
            reason = next(iter(self.dropped))
            found.append(
                f"{dropped:,} of {self.read:,} were dropped, most as '{reason}'. {self.corpus.download}".rstrip()
            )
        return found


@dataclass(frozen=True)
class BuildOptions:
    """What of a split is built, and how its samples are stored."""

    limit: int | None = None
    """Stop after so many drafts (images, conversations)."""
    bake_side: int | None = None
    """Store images squashed to squares of this side."""
    images: ImageRules = ImageRules()
    """The largest image, and whether images are decoded to find damaged ones."""


def build(
    corpus: CorpusSpec,
    root: Path,
    split: str,
    output: Path,
    *,
    workers: int = 0,
    samples_per_shard: int = 0,
    options: BuildOptions = BuildOptions(),
    progress: Callable[[int], None] | None = None,
) -> BuildReport:
    """Build a split of `corpus` from the files below `root` into the folder `output`.

    `samples_per_shard` 0 takes the corpus's own number. `progress` receives the number of annotations as they are read.
    An interrupted build resumes. Raises `ConfigError` for an unknown split or if `output` holds something else,
    `MissingFilesError` if files are missing, and `DataError` if they cannot be read.
    """
    if split not in corpus.expected and not corpus.has_any_split:
        raise ConfigError(f"{corpus.name} has no split '{split}'. Its splits are {', '.join(corpus.expected)}")
    _refuse_another_corpus(corpus, split, output)
    began = time.monotonic()
    raw = corpus.raw(root)
    read = 0

    def annotated() -> Iterator[Draft | Rejected]:
        nonlocal read
        for item in islice(_read_drafts(corpus, raw, split), options.limit):
            read += item.annotations
            if progress is not None:
                progress(item.annotations)
            yield item

    reasons: dict[str, Dropped] = {}
    refused: list[str] = []
    num_refused = 0

    def count_dropped(one: Dropped) -> None:  # keeps one entry per reason, however many samples are dropped
        nonlocal num_refused
        if corpus.strict and one.shard:
            num_refused += 1
            if len(refused) < MAX_SHOWN:
                refused.append(f"  {one.key}: {one.reason}")
        known = reasons.get(one.reason)
        reasons[one.reason] = one if known is None else replace(known, count=known.count + one.count)

    corrected: dict[str, list[str]] = {}

    def name_corrected(what: str, names: list[str]) -> None:
        known = corrected.setdefault(what, [])
        known += names[: MAX_NAMED - len(known)]

    manifest = write_corpus(
        annotated(),
        output,
        corpus.name,
        samples_per_shard=samples_per_shard or corpus.samples_per_shard,
        workers=workers,
        options=CorpusOptions(
            corpus.license,
            split,
            finish,
            options.bake_side,
            options.images,
            name_corrected,
            lambda: _refuse_faults(corpus, refused, num_refused),
        ),
        on_dropped=count_dropped,
    )
    expected = None if options.limit is not None else corpus.expected.get(split)
    dropped, seconds = summarize(reasons.values()), time.monotonic() - began
    report = BuildReport(corpus, split, manifest, read, expected, dropped, seconds)
    notes = [text.replace("{count}", f"{count:,}") for text, count in raw.notes.items()]
    notes += raw.passed_over.lines()
    return replace(report, notes=tuple(notes), layout=tuple(raw.describe()), corrected=corrected)


def _refuse_faults(corpus: CorpusSpec, lines: list[str], number: int) -> None:
    if number:
        head = (
            f"{corpus.name}: {number} of its images cannot be used. Replace them, or leave them out with --skip-faults:"
        )
        raise RefusedBuild(list_mistakes(head, lines, number))


def list_mistakes(head: str, lines: list[str], number: int) -> str:
    """The head, the first mistakes, and how many of the `number` mistakes are not listed."""
    more = [f"  and {number - len(lines)} more"] if number > len(lines) else []
    return "\n".join([head, *lines, *more])


def finished(output: Path) -> Manifest | None:
    """The manifest of a finished corpus. None also if it is damaged or of an older format: then it is rebuilt."""
    try:
        return parse_manifest(output) if (output / MANIFEST_FILE).is_file() else None
    except DataError:
        return None


def _refuse_another_corpus(corpus: CorpusSpec, split: str, output: Path) -> None:
    """Keep a finished corpus from being overwritten because an option was forgotten."""
    there = finished(output)
    if there is not None and (there.corpus != corpus.name or there.split not in ("", split)):
        raise ConfigError(
            f"{output} holds {there.title}; build {corpus.name} {split} into another --output, or remove that folder"
        )


def _read_drafts(corpus: CorpusSpec, raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """The corpus's drafts. An exception in its reader means an unexpected layout, and becomes a `DataError`."""
    last = ""
    try:
        for item in corpus.drafts(raw, split):
            if isinstance(item, Draft):
                _check(item, corpus)
            yield item
            last = item.key if isinstance(item, Draft) else item.where
    except MissingFilesError as error:
        if not last:
            raise
        raise DataError(str(error)) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        after = f"after '{last}'" if last else "the first one"
        raise DataError(
            f"{corpus.name}: an annotation, {after}, has an unsupported layout ({type(error).__name__}: {error})"
            f". Check that the file is complete and of the right version. {corpus.download}".rstrip()
        ) from error


def _check(draft: Draft, corpus: CorpusSpec) -> None:
    """Raise `DataError`, naming corpus and sample, if a text is not a text or a turn is of a task that is not listed.

    These are mistakes of the corpus's reader, not of an annotation, so the sample is not dropped.
    """
    where = f"{corpus.name}: sample {draft.key!r}"
    _require_texts(where, "key", (draft.key,))
    for turn in draft.turns:
        _require_texts(where, "question", () if turn.question is None else (turn.question,))
        _require_texts(where, "answers", turn.answers)
        for region in turn.regions:
            _require_texts(where, "phrases", region.phrases)
        if turn.task not in TASKS:
            raise DataError(f"{where}: unknown task '{turn.task}'. The tasks are {', '.join(TASKS)}")
        if turn.task not in corpus.tasks and corpus.tasks != MIXED:
            listed = ", ".join(corpus.tasks)
            raise DataError(f"{where}: has a turn of task '{turn.task}', but CorpusSpec.tasks lists {listed}")


def _require_texts(where: str, field: str, values: tuple[str, ...]) -> None:
    for value in values:
        if not isinstance(value, str):
            raise DataError(f"{where}: {field} must be text, got {type(value).__name__} {value!r}")
