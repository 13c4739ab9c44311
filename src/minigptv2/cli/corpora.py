"""`shards build` and `shards list`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.cli.arguments import at_least

if TYPE_CHECKING:
    from minigptv2.corpora.sources import CorpusSpec

EVERYTHING = "all"


def add_commands(shard_commands: Any) -> None:
    """Add this file's sub-commands to `shards`."""
    build = shard_commands.add_parser(
        "build",
        help="write a corpus, or your own data, as webdataset shards",
        description="CORPUS is a row of `minigptv2 shards list`, a file of your own (.jsonl, .csv, .json), or `all`: "
        "every corpus of the stages whose files are below --root, each into its folder below --output. A build that "
        "was interrupted goes on where it was.",
        epilog="example: minigptv2 shards build refcoco --root raw --output data/shards/refcoco",
    )
    build.add_argument("corpus", metavar="CORPUS")
    build.add_argument("--output", required=True, metavar="DIR", help="folder of the corpus's shards")
    build.add_argument(
        "--root", metavar="RAW", help="folder with the original files; default: here, or the file's folder"
    )
    build.add_argument("--split", default="train")
    build.add_argument(
        "--workers", type=at_least(0), metavar="N", help="processes that read pictures and write; default: CPUs"
    )
    build.add_argument("--size", type=at_least(1), metavar="N", help="samples in a shard")
    build.add_argument("--limit", type=at_least(1), metavar="N", help="stop after this many pictures or conversations")
    build.add_argument("--bake", type=at_least(1), metavar="SIDE", help="store pictures squashed to SIDE x SIDE")
    build.add_argument("--per-question", action="store_true", help="a sample, and the picture again, for each question")
    build.add_argument("--tokenizer", metavar="PATH", help="for the lengths on the page; default: counts characters")
    build.add_argument("--skip-bad", action="store_true", help="of your own data: leave out the lines with mistakes")
    build.set_defaults(run=_build)
    listing = shard_commands.add_parser("list", help="all corpora: task, stage, licence, counts, size")
    listing.add_argument("--markdown", action="store_true", help="as the table of docs/corpora.md, with sources")
    listing.set_defaults(run=_list)


def _build(args: argparse.Namespace) -> int:
    from minigptv2.corpora.own import FORMATS, own_corpus
    from minigptv2.corpora.sources import CORPORA
    from minigptv2.errors import ConfigError, nearest

    if args.corpus == EVERYTHING:
        return _build_all(args)
    file = Path(args.corpus)
    if file.suffix.lower() in FORMATS or "/" in args.corpus:
        corpus, root = own_corpus(file, skip_bad=args.skip_bad), Path(args.root or file.parent)
    elif args.corpus in CORPORA:
        corpus, root = CORPORA[args.corpus], Path(args.root or ".")
    else:
        hint = nearest(args.corpus, list(CORPORA))
        raise ConfigError(
            f"unknown corpus '{args.corpus}'{hint} `minigptv2 shards list` shows all; your own data is a file"
        )
    _build_one(corpus, root, Path(args.output), args)
    return 0


def _build_all(args: argparse.Namespace) -> int:
    """Each corpus of the stages in turn; what is not there is told at the end."""
    from minigptv2.corpora.build_corpus import finished
    from minigptv2.corpora.sources import CORPORA
    from minigptv2.errors import ConfigError, DataError, MissingFilesError
    from minigptv2.shards.manifest import MANIFEST_FILE

    missing, failed, root = [], [], Path(args.root or ".")
    rows = [row for row in CORPORA.values() if row.stages and args.split in row.expected]
    for number, corpus in enumerate(rows, 1):
        output = Path(args.output) / corpus.name
        print(f"[{number} of {len(rows)}] {corpus.name}: {corpus.title}", flush=True)
        try:
            there = finished(output)
            if there is not None and there.split in ("", args.split):
                print(f"is built already; to build it anew remove {output}")
                continue
            if there is None and (output / MANIFEST_FILE).is_file():
                print("its manifest is damaged or of an older format: built anew")
            _build_one(corpus, root, output, args)
        except MissingFilesError as error:
            missing.append(str(error))
            print("its files are not there")
        except (ConfigError, DataError) as error:  # the others are not to wait for this one
            failed.append(str(error))
            print(f"failed: {error}", flush=True)
    for reason in missing:
        print(f"not built: {reason}")
    for reason in failed:
        print(f"failed: {reason}")
    built = len(rows) - len(missing) - len(failed)
    print(f"{built} of {len(rows)} corpora are built below {args.output}")
    return 3 if failed or not built else 0


def _build_one(corpus: CorpusSpec, root: Path, output: Path, args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from minigptv2.corpora.build_corpus import BuildOptions, build

    total = corpus.expected.get(args.split) if args.limit is None else None
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    read = corpus.has_files or corpus.is_own  # and not drawn
    workers = args.workers if args.workers is not None else cpus if read else 0
    with tqdm(
        total=total, desc=corpus.name, unit=f" {corpus.counted}", smoothing=0.05, disable=not sys.stderr.isatty()
    ) as bar:
        report = build(
            corpus,
            root,
            args.split,
            output,
            workers=workers,
            samples_per_shard=args.size,
            options=BuildOptions(args.limit, args.per_question, args.bake),
            progress=bar.update,
        )
    for line in report.lines():
        print(line)
    if read:
        _show(output, args.tokenizer)


def _show(folder: Path, tokenizer: str | None) -> None:
    """Write the page to look at beside the shards."""
    from minigptv2.corpora.preview import write_preview
    from minigptv2.prompt import PromptEncoder
    from minigptv2.tokenizer import CharacterTokenizer, load_tokenizer

    known = load_tokenizer(tokenizer) if tokenizer else CharacterTokenizer()
    encoder = PromptEncoder(known, tokens_per_image=256, max_tokens=1024 if tokenizer else 1 << 20)
    page = folder / "preview.html"
    shown = write_preview(folder, page, encoder, samples=24, image_size=448)
    unit = "" if tokenizer else "; lengths in characters, --tokenizer gives tokens"
    print(f"look at {page}: {shown.samples} samples as the model sees them{unit}")
    for line in shown.warnings:
        print(f"warning: {line}")


def _list(args: argparse.Namespace) -> int:
    from minigptv2.corpora.sources.listing import as_markdown, as_text

    print(as_markdown() if args.markdown else as_text())
    return 0
