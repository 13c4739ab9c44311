"""`evaluate`: run benchmarks and score held-out corpora."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigptv2.cli.arguments import Parser, add_json, add_model, add_names, at_least, load_model, print_json


def add_arguments(parser: Parser) -> None:
    """Add the options of `evaluate`."""
    parser.description = (
        "Write predictions, tables with the published results, and an HTML page. To use several ranks: "
        "torchrun --nproc-per-node N -m minigptv2 evaluate ... An interrupted evaluation resumes where it stopped, on "
        "any number of ranks."
    )
    parser.epilog = (
        "example: minigptv2 evaluate --model DIR --benchmark refcoco_val --benchmark okvqa --data data "
        "--output eval/stage3"
    )
    parser.add_argument("--list", action="store_true", help="print every benchmark, its prompt and published results")
    add_model(parser, required=False)
    parser.set_defaults(prompt_style=None)
    add_names(parser, "--benchmark", metavar="NAME", help="benchmark, or all")
    add_names(
        parser,
        "--protocol",
        metavar="[BENCHMARK=]NAME",
        help="published or official, for all benchmarks or one. Default: published where a published result is shown "
        "beside the value, else official. --list prints what they are",
    )
    parser.add_argument("--data", metavar="DIR", help="corpora of the benchmarks: shards, or original files")
    parser.add_argument("--shards", metavar="DIR", help="folder of held-out corpora, one folder of shards each")
    parser.add_argument(
        "--corpus", action="append", metavar="NAME", default=[], help="corpus below --shards. Repeat it for several"
    )
    parser.add_argument(
        "--output", default="evaluation", metavar="DIR", help="output folder. An existing one is continued"
    )
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="maximum samples of each corpus")
    parser.add_argument("--batch-size", type=at_least(1), default=32, metavar="N", help="questions per batch")
    parser.add_argument(
        "--layout", default="packed", choices=("packed", "padded"), help="batch layout for scoring given choices"
    )
    parser.add_argument("--meteor", action="store_true", help="also compute METEOR for captions. Needs Java")
    parser.add_argument(
        "--samples", type=at_least(0), default=12, metavar="N", help="worst samples and random samples on the page"
    )
    add_json(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from minigptv2.evaluate.benchmarks import BENCHMARKS, chosen, listing

    if args.list and args.json:
        print_json([_listed(one) for one in BENCHMARKS.values()])
        return 0
    if args.list:
        print(listing())
        return 0
    _check(args)
    specs = chosen(args.benchmark, args.protocol) if args.benchmark else []

    from minigptv2.cluster import distributed

    alone = distributed.world_size_from_environment() == 1
    if not alone:
        device = distributed.choose_device()
        args.device = args.device or str(device)
        distributed.start_process_group(device, timeout_minutes=24 * 60)  # ranks end at different times
    try:
        return _evaluate_here(args, specs)
    finally:
        distributed.stop_process_group()


def _listed(spec: Any) -> dict[str, Any]:
    """A benchmark with all its protocols, as `--list --json` prints it."""
    protocols = {}
    for name in spec.protocols:
        one = spec.under(name)
        protocols[name] = {
            "split": one.split,
            "prompt": one.wording,
            "prompt_style": str(one.style(None)),
            "rule": one.scoring.name,
            "metric": one.scoring.headline,
            "scoring": one.scoring.definition,
        }
    kept = ("name", "corpus", "task", "source", "max_new_tokens")
    return {
        **{key: getattr(spec, key) for key in kept},
        "title": spec.title,
        "prompt": spec.wording,
        "default": spec.protocol,
        "protocols": protocols,
        "published": [asdict(one) for one in spec.results],
    }


def _check(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for options that are missing or do not go together."""
    from minigptv2.errors import ConfigError

    if not args.model:
        raise ConfigError("evaluate: --model is missing; give a model folder or an export")
    if args.protocol and not args.benchmark:
        raise ConfigError("evaluate: --protocol needs --benchmark; held-out shards have one protocol")
    if args.benchmark and not args.data:
        raise ConfigError("evaluate: --benchmark needs --data, the folder of the corpora")
    if bool(args.shards) != bool(args.corpus) or not args.benchmark and not args.shards:
        raise ConfigError("evaluate: give --benchmark and --data, or --shards and --corpus")
    for option, folder in (("--data", args.data), ("--shards", args.shards)):
        if folder and not Path(folder).is_dir():
            raise ConfigError(f"evaluate: {option} {folder}: there is no such folder")
    for name in args.corpus:
        if Path(name).name != name:
            raise ConfigError(f"evaluate: --corpus must be the name of a folder in --shards, got {name}")


def _evaluate_here(args: argparse.Namespace, specs: list[Any]) -> int:
    from minigptv2.cluster import distributed
    from minigptv2.evaluate.html import PAGE_FILE
    from minigptv2.evaluate.runner import Settings
    from minigptv2.evaluate.suite import benchmark_jobs, evaluate_all, heldout_jobs
    from minigptv2.evaluate.tables import MARKDOWN_FILE, RESULTS_FILE
    from minigptv2.prompt import PromptStyle

    output = Path(args.output)
    jobs = benchmark_jobs(specs, Path(args.data), output / "shards") if specs else []
    jobs += heldout_jobs(Path(args.shards), args.corpus) if args.shards else []
    style = None if args.prompt_style is None else PromptStyle(args.prompt_style)
    settings = Settings(args.batch_size, args.layout, args.limit, style)
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        results = evaluate_all(load_model(args), jobs, output, settings, with_meteor=args.meteor, samples=args.samples)
    if distributed.is_main() and args.json:
        print_json(results)
    elif distributed.is_main():
        print(f"{output / RESULTS_FILE}  {output / MARKDOWN_FILE}  {output / PAGE_FILE}")
    return 0
