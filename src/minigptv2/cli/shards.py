"""`shards`: build, list, index, verify, measure and preview corpora."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.cli.arguments import Parser, add_json, at_least, megapixels, print_json
from minigptv2.errors import ConfigError, DataError, ExitCode, MissingFilesError, counted, nearest
from minigptv2.shards.image_header import MAX_PIXELS

if TYPE_CHECKING:
    from minigptv2.corpora.corpus import CorpusSpec
    from minigptv2.shards.dropped import Dropped

EVERYTHING = "all"
_SHOWN_FAULTS = 20


def add_arguments(parser: Parser) -> None:
    """Add the commands of `shards`."""
    commands = parser.add_commands()
    _add_build(
        commands.add_parser(
            "build",
            help="write a data set, or your own data, as WebDataset shards",
            description="CORPUS is a name in `minigptv2 shards list`, a file of your own (.jsonl, .csv, .json), or "
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


def _add_build(parser: Parser) -> None:
    parser.add_argument("corpus", metavar="CORPUS", help="name, file or `all`")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the corpus's shards")
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="folder of the original files. Default: the current folder, or the folder of your file",
    )
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument(
        "--format", default="", metavar="NAME", help="format of your own data. Default: the one that the path matches"
    )
    parser.add_argument(
        "--negatives",
        type=at_least(0),
        default=0,
        metavar="N",
        help="ask COCO, YOLO and VOC images also for N classes that they do not have. Default: 0",
    )
    parser.add_argument(
        "--workers", type=at_least(0), metavar="N", help="processes that read images and write. Default: CPUs"
    )
    parser.add_argument("--samples-per-shard", type=at_least(1), metavar="N", help="samples in a shard")
    parser.add_old_spelling("--size", "--samples-per-shard")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="stop after N images or conversations")
    parser.add_argument("--bake", type=at_least(1), metavar="SIDE", help="store images resized to SIDE x SIDE pixels")
    parser.add_removed(
        "--per-question",
        "images are stored once, and training samples each question of one (`sample_by: turn`, the recipe default)",
    )
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer to measure lengths with. Default: count characters"
    )
    parser.add_argument("--skip-faults", action="store_true", help="leave out the faulty lines of your own data")
    parser.add_old_spelling("--skip-bad", "--skip-faults")
    parser.add_argument(
        "--cut-boxes",
        action="store_true",
        help="cut boxes of your own data at the image's border, also if more than 1 %% of them leave it",
    )
    parser.add_argument(
        "--max-pixels",
        type=megapixels,
        default=MAX_PIXELS,
        metavar="MEGAPIXELS",
        help="the largest image, in millions of pixels. Default: 64, and half of it for WebP",
    )
    parser.add_argument(
        "--fast", action="store_true", help="do not decode images. Training leaves out those that turn out damaged"
    )
    parser.add_argument(
        "--ignore-extra",
        action="store_true",
        help="pass over unknown keys of your conversations that hold no image, and name them. Extra members of tars "
        "are always passed over and named",
    )
    parser.set_defaults(run=_build)


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


def _build(args: argparse.Namespace) -> int:
    from minigptv2.corpora.own import OwnOptions, own_corpus
    from minigptv2.corpora.sources import CORPORA

    if args.corpus == EVERYTHING:
        return _build_all(args)
    path = Path(args.corpus)
    if args.corpus in CORPORA and not args.format:
        corpus, root = CORPORA[args.corpus], Path(args.root or ".")
    elif path.exists() or path.suffix or "/" in args.corpus:
        options = OwnOptions(
            args.skip_faults, args.cut_boxes, args.ignore_extra, args.max_pixels, args.format, args.negatives
        )
        corpus, root = own_corpus(path, options), Path(args.root or (path if path.is_dir() else path.parent))
    else:
        hint = nearest(args.corpus, list(CORPORA))
        raise ConfigError(
            f"unknown corpus '{args.corpus}'{hint}. `minigptv2 shards list` prints all names. "
            "For your own data, give a file or a folder (docs/your-own-data.md)"
        )
    _build_one(corpus, root, Path(args.output), args)
    return 0


def _build_all(args: argparse.Namespace) -> int:
    """Build each corpus of the stages in turn, and list at the end what was not built."""
    from minigptv2.corpora.build_corpus import finished
    from minigptv2.corpora.sources import CORPORA
    from minigptv2.shards.manifest import MANIFEST_FILE

    missing, failed, root = [], [], Path(args.root or ".")
    rows = [row for row in CORPORA.values() if row.stages and args.split in row.expected]
    for number, corpus in enumerate(rows, 1):
        output = Path(args.output) / corpus.name
        print(f"[{number} of {len(rows)}] {corpus.name}: {corpus.title}", flush=True)
        try:
            there = finished(output)
            if there is not None and there.split in ("", args.split):
                print(f"already built; remove {output} to build it again")
                continue
            if there is None and (output / MANIFEST_FILE).is_file():
                print("its manifest is damaged or has an older format: building it again")
            _build_one(corpus, root, output, args)
        except MissingFilesError as error:
            missing.append(str(error))
            print("source files not found")
        except (ConfigError, DataError) as error:  # build the other corpora all the same
            failed.append(str(error))
            print(f"failed: {error}", flush=True)
    for reason in missing:
        print(f"not built: {reason}")
    for reason in failed:
        print(f"failed: {reason}")
    built = len(rows) - len(missing) - len(failed)
    print(f"{built} of {len(rows)} corpora are built in {args.output}")
    return ExitCode.DATA if failed or not built else 0


def _build_one(corpus: CorpusSpec, root: Path, output: Path, args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from minigptv2.cluster.processes import usable_cpus
    from minigptv2.corpora.build_corpus import BuildOptions, build
    from minigptv2.shards.shard_file import ImageRules

    total = corpus.expected.get(args.split) if args.limit is None else None
    read = corpus.has_files or corpus.is_own  # not drawn by the program
    workers = args.workers if args.workers is not None else usable_cpus() if read else 0
    with tqdm(
        total=total, desc=corpus.name, unit=f" {corpus.counted}", smoothing=0.05, disable=not sys.stderr.isatty()
    ) as bar:
        report = build(
            corpus,
            root,
            args.split,
            output,
            workers=workers,
            samples_per_shard=args.samples_per_shard,
            options=BuildOptions(args.limit, args.bake, ImageRules(args.max_pixels, not args.fast)),
            progress=bar.update,
        )
    for line in report.lines():
        print(line)
    if read:
        _write_page(output, args.tokenizer)


def _write_page(folder: Path, tokenizer: str | None) -> None:
    """Write the preview page of a corpus that was just built."""
    from minigptv2.corpora.preview import write_preview
    from minigptv2.prompt import PromptEncoder
    from minigptv2.tokenizer import CharacterTokenizer, load_tokenizer

    known = load_tokenizer(tokenizer) if tokenizer else CharacterTokenizer()
    encoder = PromptEncoder(known, tokens_per_image=256, max_tokens=1024 if tokenizer else None)
    page = folder / "preview.html"
    shown = write_preview(folder, page, encoder, samples=24, image_size=448)
    unit = "" if tokenizer else "; lengths in characters (--tokenizer: in tokens)"
    print(f"preview {page}: {counted(shown.samples, 'samples')} as the model sees them{unit}")
    for line in shown.warnings:
        print(f"warning: {line}")


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
        report.write_text("".join(f"{fault.to_json()}\n" for fault in faults))
    for fault in faults if report is None else faults[:_SHOWN_FAULTS]:
        print(fault, file=sys.stderr)
    if len(faults) > 1:
        for reason, count in summarize(faults).items():
            print(f"{at_least(reason, count):>8}  {reason}", file=sys.stderr)


def _bar(title: str, unit: str) -> Any:
    from tqdm import tqdm

    return tqdm(desc=title, unit=unit, disable=not sys.stderr.isatty())
