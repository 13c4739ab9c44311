"""`mix`: what a recipe comes to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minigptv2.cli.arguments import at_least


def add_commands(commands: Any) -> None:
    """Add this file's sub-command."""
    mix = commands.add_parser("mix", help="shares, epochs and pictures of a recipe's mixture over a run")
    mix.add_argument("recipe", help="a YAML in data_recipes")
    mix.add_argument("--steps", type=at_least(1), default=1000, help="length of the run (default 1000)")
    mix.add_argument("--global-batch-size", type=at_least(1), default=96, help="samples a step (default 96)")
    mix.add_argument("--shards", default="data/shards", help="folder or URL with one folder of shards per corpus")
    mix.add_argument("--tokenizer", help="measure the samples' lengths with this tokenizer")
    mix.add_argument("--tokens-per-image", type=at_least(1), default=256)
    mix.add_argument("--max-tokens", type=at_least(1), default=1024)
    mix.add_argument("--output", help="also draw the mixture over time: a .png or .html file")
    mix.set_defaults(run=_mix)


def _mix(args: argparse.Namespace) -> int:
    from minigptv2.corpora.sources import CORPORA
    from minigptv2.data.mix_report import collect_stats, format_table, mix, save_chart
    from minigptv2.data.plan import load_recipe
    from minigptv2.prompt import PromptEncoder
    from minigptv2.tokenizer import load_tokenizer

    recipe = load_recipe(args.recipe)
    encoder = None
    if args.tokenizer:
        encoder = PromptEncoder(
            load_tokenizer(args.tokenizer), tokens_per_image=args.tokens_per_image, max_tokens=args.max_tokens
        )
    sizes = {name: corpus.train_samples for name, corpus in CORPORA.items()}
    expected = {name: size for name, size in sizes.items() if size}
    corpora = collect_stats(recipe, args.shards, expected, encoder, seed=0)
    mixed = mix(recipe, corpora, steps=args.steps, global_batch_size=args.global_batch_size)
    tasks = ", ".join(f"{task} {ratio:g}" for task, ratio in recipe.tasks.items())
    ratios = [share.ratio for share in recipe.corpora.values() if share.ratio is not None]
    total = f", adding up to {sum(ratios):g}" if len(ratios) == len(recipe.corpora) else ""
    print(
        f"{args.recipe}: {args.steps:,} steps of {args.global_batch_size} samples; ratios by {recipe.unit}{total}, "
        f"temperature {recipe.temperature:g}" + (f"; tasks: {tasks}" if tasks else "")
    )
    print(format_table(mixed))
    missing = [name for name, corpus in corpora.items() if not corpus.built]
    if missing:
        print(f"no shards under {args.shards} for {', '.join(missing)}: sizes are those of the table of corpora")
    if encoder is None:
        print("tokens are not known: give --tokenizer, and shards to measure")
    if args.output:
        save_chart(mixed, Path(args.output), f"{Path(args.recipe).stem}, {args.steps:,} steps")
        print(args.output)
    return 0
