"""`ask`: answer one question about an image."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigptv2.cli.arguments import Parser, add_decoding, add_json, add_model, decoding_of, load_model, print_json


def add_arguments(parser: Parser) -> None:
    """Add the options of `ask`."""
    parser.epilog = 'example: minigptv2 ask --model runs/demo/stage3/export photo.jpg "[refer] the dog" --draw out.png'
    add_model(parser)
    parser.add_argument("image", metavar="IMAGE", help="JPEG, PNG or WebP file")
    parser.add_argument("question", metavar="QUESTION", help='for example "[refer] the dog on the left"')
    parser.add_argument("--draw", metavar="FILE", help="write the image with the answer's boxes to this file")
    add_decoding(parser)
    add_json(parser)
    parser.set_defaults(run=_ask)


def _ask(args: argparse.Namespace) -> int:
    from minigptv2.draw import draw_boxes
    from minigptv2.errors import DataError
    from minigptv2.predict.requests import Request, boxes_as_json
    from minigptv2.shards.image_convert import read_photo
    from minigptv2.tasks import task_of

    file = Path(args.image)
    if not file.is_file():
        raise DataError(f"no image {file}")
    photo = read_photo(file, str(file))
    question = readable(args.question)
    if args.draw:
        check_drawing(Path(args.draw))
    answer = load_model(args).answer([Request(question, (photo.image,))], decoding_of(args))[0]
    parsed = task_of(question).parse(answer, photo.width, photo.height)
    boxes = [(box, item.phrase) for item in parsed.grounded for box in item.boxes]
    if args.json:
        print_json({"answer": answer, "boxes": boxes_as_json(parsed.grounded), "drawn": args.draw})
    else:
        print(answer)
        for box, phrase in boxes:
            print(f"box {box} px" + (f"  {phrase}" if phrase else ""))
    if args.draw:
        draw_boxes(photo.image, boxes, size=(photo.width, photo.height)).save(args.draw)
        if not args.json:
            print(f"drawn {len(boxes)} box(es) in {args.draw}")
    return 0


def readable(question: str) -> str:
    """The question about an image as it is asked. Raises `DataError` for an empty one, and for marks out of place."""
    from minigptv2.errors import DataError
    from minigptv2.typed_marks import asked_question

    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the question is not valid UTF-8: {error.reason}") from error
    if not question.strip():
        raise DataError("the question is empty")
    return asked_question(question, "the question", num_images=1)


def check_drawing(file: Path) -> None:
    """Raise `ConfigError`, before a model is loaded, if the drawn image could not be written to `file`."""
    from PIL import Image

    from minigptv2.errors import ConfigError

    if not file.parent.is_dir():
        raise ConfigError(f"--draw {file}: there is no folder {file.parent}")
    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise ConfigError(f"--draw must name an image file, for example out.png; got {file}")
