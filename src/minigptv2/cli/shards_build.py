"""`shards build`: writes a data set, or a user's own data, as shards."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from minigptv2.cli.arguments import Parser, at_least, column, megapixels
from minigptv2.errors import ConfigError, DataError, ExitCode, MissingFilesError, counted, nearest
from minigptv2.shards.image_header import MAX_PIXELS

if TYPE_CHECKING:
    from minigptv2.corpora.corpus import CorpusSpec

EVERYTHING = "all"


def add_build(parser: Parser) -> None:
    """Add the options of `shards build`."""
    parser.add_argument(
        "corpus",
        metavar="CORPUS",
        help="name of a public corpus (`minigptv2 shards list`), `all`, or a file or folder of your own data: JSONL, "
        "JSON (conversations, COCO), CSV, Parquet, Arrow, YOLO, Pascal VOC, or images with captions beside them",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the corpus's shards")
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="folder of the original files. Default: the current folder, or the folder of your file",
    )
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument(
        "--format",
        default="",
        metavar="NAME",
        help="format of your own data: jsonl, csv, json, yolo, voc, table, imagefolder or captions. Default: the one "
        "that the path matches",
    )
    parser.add_argument(
        "--columns",
        action="extend",
        nargs="+",
        type=column,
        default=[],
        metavar="KEY=COLUMN",
        help="columns of your table for keys of an entry: image=img answer=caption. unused=COLUMN leaves one out",
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


def _build(args: argparse.Namespace) -> int:
    from minigptv2.corpora.own import OwnOptions, own_corpus
    from minigptv2.corpora.sources import CORPORA

    if args.corpus == EVERYTHING:
        return _build_all(args)
    path = Path(args.corpus)
    if args.corpus in CORPORA and not args.format:
        corpus, root = CORPORA[args.corpus], Path(args.root or ".")
    elif os.path.exists(path) or path.suffix or "/" in args.corpus:
        options = OwnOptions(
            args.skip_faults,
            args.cut_boxes,
            args.ignore_extra,
            args.max_pixels,
            args.format,
            args.negatives,
            tuple(args.columns),
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
    from minigptv2.cluster.processes import usable_cpus
    from minigptv2.corpora.build_corpus import BuildOptions, build
    from minigptv2.progress_bars import progress_bar
    from minigptv2.shards.shard_file import ImageRules

    total = corpus.expected.get(args.split) if args.limit is None else None
    read = corpus.has_files or corpus.is_own  # not drawn by the program
    workers = args.workers if args.workers is not None else usable_cpus() if read else 0
    with progress_bar(total=total, desc=corpus.name, unit=f" {corpus.counted}", smoothing=0.05) as bar:
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
