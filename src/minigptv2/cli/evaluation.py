"""`evaluate` and `compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minigptv2.cli.arguments import at_least
from minigptv2.cli.inference import add_model, load_model


def add_commands(commands: Any) -> None:
    """Add this file's sub-commands."""
    evaluate = commands.add_parser(
        "evaluate",
        help="benchmarks and held-out corpora: predictions, tables with the published row beside, a page",
        description="Over several ranks: torchrun --nproc-per-node N -m minigptv2.cli evaluate ... An interrupted "
        "evaluation goes on where it was cut off, on any number of ranks.",
        epilog="example: minigptv2 evaluate --model DIR --benchmark refcoco_val,okvqa --data data --output eval/stage3",
    )
    evaluate.add_argument("--list", action="store_true", help="print every benchmark, its prompt and published figures")
    add_model(evaluate, required=False)
    evaluate.add_argument("--benchmark", metavar="A,B", help="benchmarks by name, or all")
    evaluate.add_argument("--data", metavar="DIR", help="their corpora: shards, or originals to build them of")
    evaluate.add_argument("--shards", metavar="DIR", help="instead: held-out shards, one folder per corpus")
    evaluate.add_argument("--corpus", action="append", metavar="NAME", help="of --shards; repeat for several")
    evaluate.add_argument("--output", default="evaluation", help="folder to write; continued if it is there")
    evaluate.add_argument("--limit", type=at_least(1), help="samples per corpus")
    evaluate.add_argument("--batch-size", type=at_least(1), default=32)
    evaluate.add_argument(
        "--layout", default="packed", choices=("packed", "padded"), help="of choices that are weighed"
    )
    evaluate.add_argument("--meteor", action="store_true", help="METEOR of captions too; needs Java")
    evaluate.add_argument("--samples", type=at_least(0), default=12, help="worst and random samples on the page, each")
    evaluate.set_defaults(run=_evaluate)

    compare = commands.add_parser(
        "compare",
        help="two evaluations, question by question: differences, significance, flips",
        epilog="example: minigptv2 compare eval/stage2 eval/stage3 --output eval/difference.json",
    )
    compare.add_argument("run_a", metavar="RUN_A", help="what `evaluate` wrote")
    compare.add_argument("run_b", metavar="RUN_B")
    compare.add_argument("--flips", type=at_least(0), default=5, help="questions shown that flipped, each way")
    compare.add_argument("--output", metavar="FILE", help="everything as JSON")
    compare.set_defaults(run=_compare)


def _evaluate(args: argparse.Namespace) -> int:
    from minigptv2.errors import ConfigError
    from minigptv2.evaluate.benchmarks import chosen, listing

    if args.list:
        print(listing())
        return 0
    if not args.model:
        raise ConfigError("evaluate: --model is missing: a model folder or an export")
    rows = chosen(args.benchmark.split(",")) if args.benchmark else []
    if rows and not args.data:
        raise ConfigError("evaluate: --benchmark needs --data, the folder of the corpora")
    if bool(args.shards) != bool(args.corpus) or not rows and not args.shards:
        raise ConfigError("evaluate: give --benchmark and --data, or --shards and --corpus")
    for option, folder in (("--data", args.data), ("--shards", args.shards)):
        if folder and not Path(folder).is_dir():
            raise ConfigError(f"evaluate: {option} {folder}: there is no such folder")
    if beside := [name for name in args.corpus or () if Path(name).name != name]:
        raise ConfigError(f"evaluate: --corpus {beside[0]}: want the name of a folder of --shards")

    from minigptv2.cluster import distributed

    alone = distributed.world_size_from_environment() == 1
    if not alone:
        device = distributed.choose_device()
        args.device = args.device or str(device)
        distributed.start_process_group(device, timeout_minutes=24 * 60)  # ranks end at different times
    try:
        return _evaluate_here(args, rows)
    finally:
        distributed.stop_process_group()


def _evaluate_here(args: argparse.Namespace, rows: list[Any]) -> int:
    from minigptv2.cluster import distributed
    from minigptv2.evaluate.html import PAGE_FILE
    from minigptv2.evaluate.runner import Settings
    from minigptv2.evaluate.suite import benchmark_jobs, evaluate_all, held_out_jobs
    from minigptv2.evaluate.tables import MARKDOWN_FILE, RESULTS_FILE

    output = Path(args.output)
    jobs = benchmark_jobs(rows, Path(args.data), output / "shards") if rows else []
    jobs += held_out_jobs(Path(args.shards), args.corpus) if args.shards else []
    settings = Settings(args.batch_size, args.layout, args.limit)
    evaluate_all(load_model(args), jobs, output, settings, with_meteor=args.meteor, samples=args.samples)
    if distributed.is_main():
        print(f"{output / RESULTS_FILE}  {output / MARKDOWN_FILE}  {output / PAGE_FILE}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from minigptv2.evaluate.compare import as_json, compare_runs, render

    comparisons = compare_runs(Path(args.run_a), Path(args.run_b))
    print(render(comparisons, flips=args.flips))
    if args.output:
        Path(args.output).write_text(as_json(comparisons), encoding="utf-8")
        print(args.output)
    return 0
