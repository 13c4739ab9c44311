"""`shards`: build, list, index, verify, measure and preview corpora."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.cli.arguments import Parser, add_json, at_least, print_json
from minigptv2.cli.shards_build import add_build
from minigptv2.errors import DataError, counted
from minigptv2.redacted_files import write_text

if TYPE_CHECKING:
    from minigptv2.shards.dropped import Dropped

_SHOWN_FAULTS = 20


def add_arguments(parser: Parser) -> None:
    """Add the commands of `shards`."""
    commands = parser.add_commands()
    add_build(
        commands.add_parser(
            "build",
            help="write a data set, or your own data, as WebDataset shards",
            description="CORPUS is a name in `minigptv2 shards list`, a file or folder of your own, or "
            "`all`: every corpus of the stages whose files are in --root, each to its folder in --output. An "
            "interrupted build continues where it stopped.",
            epilog="example: minigptv2 shards build refcoco --root raw --output data/shards/refcoco",
        )
    )
    listing = commands.add_parser("list", help="list all corpora: task, stage, license, counts, size")
    listing.add_argument("--markdown", action="store_true", help="print the table of docs/corpora.md, with sources")
    add_json(listing)
    listing.set_defaults(run=_list)
    _add_index(commands.add_parser("index", help="index tar files that another program wrote, to use them as a corpus"))
    _add_verify(commands.add_parser("verify", help="verify checksums, records and images. Exit code 3 for any fault"))
    _add_stats(commands.add_parser("stats", help="print counts and distributions of a corpus"))
    _add_preview(commands.add_parser("preview", help="write an HTML page of samples as the model sees them"))


def _add_index(parser: Parser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder of .tar files: records, or images with json or txt captions"
    )
    parser.add_argument(
        "--corpus", metavar="NAME", help="name in recipes and messages. Default: the one before, or the folder's name"
    )
    parser.add_argument("--license", default="", help="license to record in the manifest")
    parser.add_argument(
        "--skip-faults", action="store_true", help="leave out faulty samples and list them in dropped.jsonl"
    )
    parser.add_argument(
        "--ignore-extra",
        action="store_true",
        help="pass over members that are not an image, json or txt, and name them",
    )
    _add_workers_and_report(parser)
    add_json(parser)
    parser.set_defaults(run=_index)


def _add_verify(parser: Parser) -> None:
    _add_folders(parser)
    parser.add_argument(
        "--fast", action="store_true", help="verify checksums only, without decoding every record and image"
    )
    parser.add_argument("--decode", action="store_true", help="the default; accepted for older scripts")
    _add_workers_and_report(parser)
    add_json(parser)
    parser.set_defaults(run=_verify)


def _add_stats(parser: Parser) -> None:
    _add_folders(parser)
    parser.add_argument(
        "--samples", type=at_least(0), default=2000, metavar="N", help="records to read, evenly spread. Default: 2000"
    )
    parser.add_argument("--per-shard", action="store_true", help="also print one line for each shard")
    parser.add_old_spelling("--shards", "--per-shard")
    add_json(parser)
    parser.set_defaults(run=_stats)


def _add_preview(parser: Parser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="corpus")
    parser.add_argument("--tokenizer", required=True, metavar="PATH", help="file or folder of the tokenizer")
    parser.add_argument(
        "--output", type=Path, default=Path("preview.html"), metavar="FILE", help="page to write. Default: preview.html"
    )
    parser.add_argument(
        "--samples", type=at_least(0), default=24, metavar="N", help="samples to show, suspicious ones first"
    )
    parser.add_argument("--image-size", type=at_least(1), default=448, metavar="PIXELS", help="side of the images")
    parser.add_argument("--tokens-per-image", type=at_least(1), default=256, metavar="N", help="default: 256")
    parser.add_argument(
        "--max-tokens", type=at_least(1), default=1024, metavar="N", help="as data.max_tokens of a run. Default: 1024"
    )
    parser.set_defaults(run=_preview)


def _add_folders(parser: Parser) -> None:
    parser.add_argument("folder", type=Path, nargs="+", metavar="DIR", help="corpus, or folder of corpora")


def _add_workers_and_report(parser: Parser) -> None:
    parser.add_argument(
        "--workers",
        type=at_least(0),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes. 0: work in this one. Default: CPUs",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the faults to this file, one JSON line each")


def _list(args: argparse.Namespace) -> int:
    from minigptv2.corpora.sources.listing import as_markdown, as_rows, as_text

    if args.json:
        print_json(as_rows())
    else:
        print(as_markdown() if args.markdown else as_text())
    return 0


def _index(args: argparse.Namespace) -> int:
    from minigptv2.shards.indexing import index_corpus, manifest_before

    built = manifest_before(args.folder)
    corpus = args.corpus or (built.corpus if built else args.folder.resolve().name)
    notes: list[str] = []
    with _bar("indexing", "shard") as bar:
        manifest, faults = index_corpus(
            args.folder,
            corpus,
            workers=args.workers,
            skip_faults=args.skip_faults,
            ignore_extra=args.ignore_extra,
            license=args.license,
            progress=bar.update,
            note=notes.append,
        )
    for line in notes:
        print(line, file=sys.stderr if args.json else None)
    _print_faults(faults, args.report)
    if manifest is None:
        raise DataError(
            f"{corpus}: {counted(len(faults), 'faults')}, nothing written; --skip-faults leaves out the faulty samples"
        )
    if args.json:
        counts = {"samples": manifest.samples, "shards": len(manifest.shards), "turns": manifest.turns}
        print_json({"corpus": corpus, **counts, "faults": [asdict(fault) for fault in faults], "notes": notes})
        return 0
    turns = ", ".join(f"{count} {task}" for task, count in manifest.turns.items())
    samples, shards = counted(manifest.samples, "samples"), counted(len(manifest.shards), "shards")
    print(f"{corpus}: {samples} in {shards}; turns: {turns}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from minigptv2.shards.verify import verify_corpus

    faults: list[Dropped] = []
    rows = []
    for folder in _corpora(args.folder):
        notes: list[str] = []
        with _bar(folder.name, "shard") as bar:
            found = verify_corpus(
                folder, decode=not args.fast, workers=args.workers, progress=bar.update, note=notes.append
            )
        if not args.json:
            print(f"{folder}: {'intact' if not found else counted(len(found), 'faults')}")
            for line in notes:
                print(f"{folder}: {line}")
        rows.append({"folder": str(folder), "faults": [asdict(fault) for fault in found], "notes": notes})
        faults += found
    _print_faults(faults, args.report)
    if args.json:
        print_json(rows)
    return DataError.exit_code if faults else 0


def _stats(args: argparse.Namespace) -> int:
    from minigptv2.corpora.stats import describe_corpus, describe_shards, list_shards, measure_corpus

    folders = _corpora(args.folder)
    if args.json:
        rows: list[dict[str, Any]] = []
        for folder in folders:
            rows.append({"folder": str(folder), **asdict(measure_corpus(folder, args.samples))})
            if args.per_shard:
                rows[-1]["shard_list"] = [asdict(one) for one in list_shards(folder)]
        print_json(rows)
        return 0
    for folder in folders:
        print(describe_corpus(folder, args.samples))
        if args.per_shard:
            print(describe_shards(folder))
    return 0


def _preview(args: argparse.Namespace) -> int:
    from minigptv2.corpora.preview import write_preview
    from minigptv2.prompt import PromptEncoder
    from minigptv2.tokenizer import load_tokenizer

    encoder = PromptEncoder(
        load_tokenizer(args.tokenizer), tokens_per_image=args.tokens_per_image, max_tokens=args.max_tokens
    )
    shown = write_preview(args.folder, args.output, encoder, samples=args.samples, image_size=args.image_size)
    print(f"{args.output}: {shown.samples} samples, {shown.flagged} flagged")
    for line in shown.warnings:
        print(f"warning: {line}", file=sys.stderr)
    return 0


def _corpora(folders: list[Path]) -> list[Path]:
    """Each folder that is a corpus, and the corpora inside each one that is not."""
    from minigptv2.shards.manifest import MANIFEST_FILE

    found = []
    for folder in folders:
        within = [] if (folder / MANIFEST_FILE).exists() else sorted(folder.glob(f"*/{MANIFEST_FILE}"))
        found += [file.parent for file in within] or [folder]
    return found


def _print_faults(faults: list[Dropped], report: Path | None) -> None:
    from minigptv2.shards.dropped import summarize
    from minigptv2.shards.tar_samples import at_least

    if report is not None:
        write_text(report, "".join(f"{fault.to_json()}\n" for fault in faults))
    for fault in faults if report is None else faults[:_SHOWN_FAULTS]:
        print(fault, file=sys.stderr)
    if len(faults) > 1:
        for reason, count in summarize(faults).items():
            print(f"{at_least(reason, count):>8}  {reason}", file=sys.stderr)


def _bar(title: str, unit: str) -> Any:
    from minigptv2.progress_bars import progress_bar

    return progress_bar(desc=title, unit=unit)
