"""`mix`: show the shares of samples, tokens and objective, the epochs and the images of a recipe over a run."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from minigptv2.cli.arguments import Parser, add_json, at_least, print_json

if TYPE_CHECKING:
    from minigptv2.data.config import Recipe


def add_arguments(parser: Parser) -> None:
    """Add the options of `mix`."""
    parser.description = "Works before any shards exist: then sizes come from `minigptv2 shards list`."
    parser.epilog = "example: minigptv2 mix data_recipes/stage2_multitask.yaml --steps 50000 --output mix.html"
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, for example in data_recipes")
    parser.add_argument("--steps", type=at_least(1), default=1000, metavar="N", help="steps of the run. Default: 1000")
    parser.add_argument(
        "--global-batch-size", type=at_least(1), default=96, metavar="N", help="samples per step. Default: 96"
    )
    parser.add_argument(
        "--shards",
        default="data/shards",
        metavar="DIR",
        url=True,
        help="folder or URL with one folder of shards per corpus",
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer to measure the samples' lengths with")
    parser.add_argument("--tokens-per-image", type=at_least(1), default=256, metavar="N", help="default: 256")
    parser.add_argument(
        "--max-tokens", type=at_least(1), default=1024, metavar="N", help="as data.max_tokens of a run. Default: 1024"
    )
    parser.add_argument("--output", metavar="FILE", help="also plot the mixture over time to a .png or .html file")
    add_json(parser)
    parser.set_defaults(run=_mix)


def _mix(args: argparse.Namespace) -> int:
    from minigptv2.corpora.sources import CORPORA
    from minigptv2.data.config import BY_TURN
    from minigptv2.data.mix_report import (
        SHARES,
        collect_stats,
        format_table,
        format_tasks,
        mix,
        save_chart,
        shares_by_task,
    )
    from minigptv2.data.plan import load_recipe
    from minigptv2.prompt import PromptEncoder
    from minigptv2.tokenizer import load_tokenizer

    recipe = load_recipe(args.recipe)
    encoder = None
    if args.tokenizer:
        encoder = PromptEncoder(
            load_tokenizer(args.tokenizer), tokens_per_image=args.tokens_per_image, max_tokens=args.max_tokens
        )
    sizes = {
        name: CORPORA[name].train_samples(by_turn=share.sample_by == BY_TURN, share_images=share.share_images)
        for name, share in recipe.corpora.items()
        if name in CORPORA
    }
    expected = {name: size for name, size in sizes.items() if size}
    corpora = collect_stats(recipe, args.shards, expected, encoder, seed=0)
    mixed = mix(recipe, corpora, steps=args.steps, global_batch_size=args.global_batch_size)
    missing = [name for name, corpus in corpora.items() if not corpus.built]
    if args.json:
        totals = {"recipe": args.recipe, "steps": mixed.steps, "global_batch_size": mixed.global_batch_size}
        totals |= {"objective": recipe.objective, "tasks": shares_by_task(mixed)}
        print_json({**totals, "corpora": [asdict(row) for row in mixed.rows], "without_shards": missing})
    else:
        print(_title(args, recipe))
        print(format_table(mixed))
        print(f"\n{format_tasks(mixed)}\n")
        if missing:
            print(f"no shards in {args.shards} for {', '.join(missing)}: sizes are from `minigptv2 shards list`")
        unknown = [name for name, share in zip(SHARES, mixed.rows[0].shares, strict=True) if share is None]
        if unknown:
            names = ", ".join(unknown)
            print(f"shares of {names} are unknown: --tokenizer measures them on the shards, if all corpora have some")
    if args.output:
        save_chart(mixed, Path(args.output), f"{Path(args.recipe).stem}, {args.steps:,} steps")
        if not args.json:
            print(args.output)
    return 0


def _title(args: argparse.Namespace, recipe: Recipe) -> str:
    tasks = ", ".join(f"{task} {ratio:g}" for task, ratio in recipe.tasks.items())
    ratios = [share.ratio for share in recipe.corpora.values() if share.ratio is not None]
    total = f", sum {sum(ratios):g}" if len(ratios) == len(recipe.corpora) else ""
    return (
        f"{args.recipe}: {args.steps:,} steps of {args.global_batch_size} samples; ratios by {recipe.unit}{total}, "
        f"temperature {recipe.temperature:g}"
        + (f"; tasks: {tasks}" if tasks else "")
        + f"; objective {recipe.objective}"
    )
