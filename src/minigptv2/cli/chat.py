"""`chat`: talk about an image in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigptv2.cli.arguments import Parser, add_decoding, add_model, decoding_of, load_model
from minigptv2.cli.ask import check_drawing


def add_arguments(parser: Parser) -> None:
    """Add the options of `chat`."""
    parser.description = (
        "Talk about an image, turn by turn. /help lists the commands. Boxes are printed in pixels, and drawn to "
        "--draw FILE or with --show blocks in the terminal."
    )
    parser.epilog = "example: minigptv2 chat --model runs/demo/stage3/export photo.jpg --draw boxes.png"
    add_model(parser)
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="JPEG, PNG or WebP file")
    parser.add_argument("--draw", metavar="FILE", help="write the image with the latest answer's boxes to this file")
    parser.add_argument(
        "--show",
        type=_show,
        default="none",
        metavar="{blocks,none}",
        help="blocks: also show the boxes in the terminal, as colored half blocks. Default: none",
    )
    add_decoding(parser)
    parser.set_defaults(run=_chat)


def _show(value: str) -> str:
    """A value of --show. The terminal graphics protocols of earlier versions are refused with their replacement."""
    if value == "auto":  # the default of version 0.1, which drew nothing in most terminals
        return "none"
    if value in ("kitty", "iterm"):
        raise argparse.ArgumentTypeError(
            f"'{value}' is no longer supported. Write the image with boxes to a file: --draw FILE"
        )
    if value not in ("blocks", "none"):
        raise argparse.ArgumentTypeError(f"must be blocks or none, got '{value}'")
    return value


def _chat(args: argparse.Namespace) -> int:
    from minigptv2.serve.terminal import Chat, open_file

    if args.draw:
        check_drawing(Path(args.draw))
    image = open_file(args.image) if args.image else None
    chat = Chat(
        load_model(args),
        decoding_of(args),
        image,
        draw=Path(args.draw) if args.draw else None,
        blocks=args.show == "blocks",
    )
    chat.run()
    return 0
