"""`shards index | verify | stats | preview`: what is asked of tars that are there."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.cli.arguments import at_least

if TYPE_CHECKING:
    from minigptv2.shards.dropped import Dropped

_SHOWN_FAULTS = 20


def add_commands(commands: Any) -> None:
    """Add these to `minigptv2 shards`."""
    index = commands.add_parser("index", help="make a corpus of tars that others wrote")
    index.add_argument("folder", type=Path, help="with .tar files: records, or images beside json or txt captions")
    index.add_argument("--corpus", help="its name in recipes and messages; the folder's by default")
    index.add_argument("--license", default="")
    index.add_argument("--skip-faults", action="store_true", help="leave faulty samples out, named in dropped.jsonl")
    index.set_defaults(run=_index)

    verify = commands.add_parser("verify", help="hold every byte against its hash; exit code 3 for any fault")
    verify.add_argument("folder", type=Path, nargs="+", help="a corpus, or a folder of corpora")
    verify.add_argument("--decode", action="store_true", help="also parse every record and decode every image")
    verify.set_defaults(run=_verify)

    for command in (index, verify):
        command.add_argument("--workers", type=at_least(0), default=os.cpu_count() or 1, help="processes; 0: this one")
        command.add_argument("--report", type=Path, help="write every fault to this file, a JSON line each")

    stats = commands.add_parser("stats", help="what a corpus holds, and how much of it")
    stats.add_argument("folder", type=Path, nargs="+", help="a corpus, or a folder of corpora")
    stats.add_argument("--samples", type=at_least(0), default=2000, help="look into so many, evenly spread")
    stats.add_argument("--shards", action="store_true", help="a line for every shard")
    stats.set_defaults(run=_stats)

    preview = commands.add_parser("preview", help="an HTML page of samples as the model sees them")
    preview.add_argument("folder", type=Path, help="a corpus")
    preview.add_argument("--tokenizer", required=True, help="file or folder of the tokenizer, for the exact tokens")
    preview.add_argument("--output", type=Path, default=Path("preview.html"))
    preview.add_argument("--samples", type=at_least(0), default=24, help="evenly spread; suspicious ones come first")
    preview.add_argument("--image-size", type=at_least(1), default=448)
    preview.add_argument("--tokens-per-image", type=at_least(1), default=256)
    preview.add_argument("--max-tokens", type=at_least(1), default=1024)
    preview.set_defaults(run=_preview)


def _index(args: argparse.Namespace) -> int:
    from minigptv2.errors import DataError
    from minigptv2.shards.indexing import index_corpus

    corpus = args.corpus or args.folder.resolve().name
    with _bar("indexing", "shard") as bar:
        manifest, faults = index_corpus(
            args.folder,
            corpus,
            workers=args.workers,
            skip_faults=args.skip_faults,
            license=args.license,
            progress=bar.update,
        )
    _print_faults(faults, args.report)
    if manifest is None:
        raise DataError(f"{corpus}: {len(faults)} faults, nothing written; --skip-faults leaves them out by name")
    turns = ", ".join(f"{count} {task}" for task, count in manifest.turns.items())
    print(f"{corpus}: {manifest.samples} samples in {len(manifest.shards)} shards; turns: {turns}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from minigptv2.errors import DataError
    from minigptv2.shards.verify import verify_corpus

    faults = []
    folders = _corpora(args.folder)
    for folder in folders:
        with _bar(folder.name, "shard") as bar:
            found = verify_corpus(folder, decode=args.decode, workers=args.workers, progress=bar.update)
        print(f"{folder}: {'whole' if not found else f'{len(found)} faults'}")
        faults += found
    _print_faults(faults, args.report)
    return DataError.exit_code if faults else 0


def _stats(args: argparse.Namespace) -> int:
    from minigptv2.corpora.stats import describe_corpus, describe_shards

    for folder in _corpora(args.folder):
        print(describe_corpus(folder, args.samples))
        if args.shards:
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
    """Each folder that is a corpus, and the corpora in one that is not."""
    from minigptv2.shards.manifest import MANIFEST_FILE

    found = []
    for folder in folders:
        within = [] if (folder / MANIFEST_FILE).exists() else sorted(folder.glob(f"*/{MANIFEST_FILE}"))
        found += [file.parent for file in within] or [folder]
    return found


def _print_faults(faults: list[Dropped], report: Path | None) -> None:
    from minigptv2.shards.dropped import summarize

    if report is not None:
        report.write_text("".join(f"{fault.to_json()}\n" for fault in faults))
    for fault in faults if report is None else faults[:_SHOWN_FAULTS]:
        print(fault, file=sys.stderr)
    if len(faults) > 1:
        for reason, count in summarize(faults).items():
            print(f"{count:8d}  {reason}", file=sys.stderr)


def _bar(title: str, unit: str) -> Any:
    from tqdm import tqdm

    return tqdm(desc=title, unit=unit, disable=not sys.stderr.isatty())
