"""`chat`: talk about an image in the terminal."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from minigptv2.cli.arguments import Parser, add_decoding, add_model, decoding_of, load_model
from minigptv2.cli.ask import check_drawing


def add_arguments(parser: Parser) -> None:
    """Add the options of `chat`."""
    parser.description = (
        "Talk about an image, turn by turn. /help lists the commands. Boxes are printed in pixels, and drawn to "
        "--draw FILE or in a terminal that can show images."
    )
    parser.epilog = "example: minigptv2 chat --model runs/demo/stage3/export photo.jpg --draw boxes.png"
    add_model(parser)
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="JPEG, PNG or WebP file")
    parser.add_argument("--draw", metavar="FILE", help="write the image with the latest answer's boxes to this file")
    parser.add_argument(
        "--show",
        default="auto",
        choices=("auto", "kitty", "iterm", "blocks", "none"),
        help="how the terminal shows images. auto: as the terminal says it can",
    )
    add_decoding(parser)
    parser.set_defaults(run=_chat)


def _chat(args: argparse.Namespace) -> int:
    from minigptv2.serve.terminal import Chat, open_file, picture_mode

    if args.draw:
        check_drawing(Path(args.draw))
    image = open_file(args.image) if args.image else None
    chat = Chat(
        load_model(args),
        decoding_of(args),
        image,
        draw=Path(args.draw) if args.draw else None,
        mode=picture_mode(args.show, dict(os.environ)),
    )
    chat.run()
    return 0
