"""`ask`, `predict` and `score`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.cli.arguments import at_least

if TYPE_CHECKING:
    from minigptv2.predict.jsonl import Outcome
    from minigptv2.predict.predictor import Decoding, Predictor


def add_commands(commands: Any) -> None:
    """Add this file's sub-commands."""
    ask = commands.add_parser(
        "ask",
        help="one answer about an image",
        epilog='example: minigptv2 ask --model runs/demo/stage3/export photo.jpg "[refer] the dog" --draw out.png',
    )
    add_model(ask)
    ask.add_argument("image", help="a JPEG, PNG or WebP file")
    ask.add_argument("question", help='e.g. "[refer] the dog on the left"')
    ask.add_argument("--draw", metavar="FILE", help="write the picture with the answer's boxes drawn")
    add_decoding(ask)
    ask.set_defaults(run=_ask)

    predict = commands.add_parser(
        "predict",
        help="answers to a file of requests",
        description='Answer requests, one a line: {"image": "a.jpg", "turns": [{"question": "[vqa] what is it?"}]}. '
        "An interrupted output is continued. Exit code 3 if a line was bad.",
        epilog="example: minigptv2 predict --model DIR --input requests.jsonl --output answers.jsonl",
    )
    add_model(predict)
    _add_files(predict)
    add_decoding(predict)
    predict.add_argument(
        "--top-tokens",
        type=at_least(0),
        default=0,
        metavar="K",
        help="also write the K likeliest first tokens of each answer, with their logits",
    )
    predict.set_defaults(run=_predict)

    score = commands.add_parser(
        "score",
        help="likelihoods of given answers",
        description='Score cases, one a line, every turn with its "answer": out come the tokens of the sequence '
        "(length), target_ids, nll (nats, one per supervised token) and loss. An interrupted output is continued.",
        epilog="example: minigptv2 score --model DIR --input cases.jsonl --output scores.jsonl",
    )
    add_model(score, style=False)
    _add_files(score)
    score.add_argument("--layout", default="packed", choices=("packed", "padded"), help="how a batch is laid out")
    score.set_defaults(run=_score)


def add_model(parser: argparse.ArgumentParser, *, style: bool = True, required: bool = True) -> None:
    """Options that name a model and how it is loaded."""
    parser.add_argument("--model", required=required, help="a model folder or an export")
    parser.add_argument("--vision-weights", metavar="DIR", help="where an export's vision base lies, if it was moved")
    parser.add_argument("--language-weights", metavar="DIR", help="where its language model lies, if it was moved")
    if style:
        parser.add_argument(
            "--prompt-style",
            default="trained",
            choices=("trained", "published"),
            help="published: as the published inference code writes it (two <s>, one space)",
        )
    else:
        parser.set_defaults(prompt_style="trained")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: bfloat16 on a GPU, float32 on a CPU")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", required=True, help="JSON lines; image paths are relative to this file")
    parser.add_argument("--output", required=True, help="JSON lines; continued if it is there")
    parser.add_argument("--batch-size", type=at_least(1), default=16)


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """Options of how answers are chosen."""
    parser.add_argument("--max-new-tokens", type=at_least(1), default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy; else sampling")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample among the likeliest tokens of this mass")
    parser.add_argument("--beams", type=at_least(1), default=1, help="beam search")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")


def load_model(args: argparse.Namespace) -> Predictor:
    """The predictor that the options name."""
    from minigptv2.predict.predictor import load_predictor

    return load_predictor(
        args.model,
        style=args.prompt_style,
        device=args.device,
        dtype=args.dtype,
        vision_weights=args.vision_weights,
        language_weights=args.language_weights,
    )


def decoding_of(args: argparse.Namespace) -> Decoding:
    """The decoding that the options ask for."""
    from minigptv2.predict.predictor import Decoding

    return Decoding(args.max_new_tokens, args.temperature, args.top_p, args.beams, args.seed)


def _ask(args: argparse.Namespace) -> int:
    from minigptv2.draw import draw_boxes
    from minigptv2.errors import DataError
    from minigptv2.predict.predictor import Request
    from minigptv2.shards.image_files import open_photo
    from minigptv2.tasks import task_of

    file = Path(args.image)
    if not file.is_file():
        raise DataError(f"no image {file}")
    image = open_photo(file.read_bytes(), str(file))
    question = readable(args.question)
    if args.draw:
        check_drawing(Path(args.draw))
    answer = load_model(args).answer([Request(question, (image,))], decoding_of(args))[0]
    print(answer)
    parsed = task_of(question).parse(answer, *image.size)
    for item in parsed.grounded:
        for box in item.boxes:
            print(f"box {box} px" + (f"  {item.phrase}" if item.phrase else ""))
    if args.draw:
        boxes = [(box, item.phrase) for item in parsed.grounded for box in item.boxes]
        draw_boxes(image, boxes).save(args.draw)
        print(f"drawn {len(boxes)} box(es) in {args.draw}")
    return 0


def readable(question: str) -> str:
    """The question, stripped. Raises `DataError` for one that says nothing or that is no text."""
    from minigptv2.errors import DataError

    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the question is no valid UTF-8: {error.reason}") from error
    if not question.strip():
        raise DataError("the question is empty")
    return question.strip()


def check_drawing(file: Path) -> None:
    """Raise `ConfigError`, before a model is loaded, if the picture could not be written."""
    from PIL import Image

    from minigptv2.errors import ConfigError

    if not file.parent.is_dir():
        raise ConfigError(f"--draw {file}: there is no folder {file.parent}")
    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise ConfigError(f"--draw {file}: want a picture's name, such as out.png")


def _predict(args: argparse.Namespace) -> int:
    from minigptv2.errors import ConfigError
    from minigptv2.predict.jsonl import predict_file

    predictor = load_model(args)
    most = predictor.tokenizer.vocab_size
    if not 0 <= args.top_tokens <= most:
        raise ConfigError(f"--top-tokens {args.top_tokens}: want 0 to the vocabulary's {most}")
    outcome = predict_file(
        predictor,
        Path(args.input),
        Path(args.output),
        decoding_of(args),
        batch_size=args.batch_size,
        top=args.top_tokens,
        warn=_warn,
    )
    return _told("answered", outcome, args.output)


def _score(args: argparse.Namespace) -> int:
    from minigptv2.predict.jsonl import mean_loss, score_file

    outcome = score_file(
        load_model(args),
        Path(args.input),
        Path(args.output),
        batch_size=args.batch_size,
        layout=args.layout,
        warn=_warn,
    )
    if outcome.done or outcome.before:
        loss, tokens = mean_loss(Path(args.output))
        print(f"mean loss {loss:.6f} over {tokens} supervised tokens")
    return _told("scored", outcome, args.output)


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def _told(verb: str, outcome: Outcome, output: str) -> int:
    from minigptv2.errors import DataError

    before = f", {outcome.before} before" if outcome.before else ""
    print(f"{verb} {outcome.done}{before}, skipped {len(outcome.bad)}: {output}")
    return DataError.exit_code if outcome.bad else 0
