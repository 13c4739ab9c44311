"""`serve` and `chat`: the model in a browser, behind the chat-completions protocol, and in a terminal."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from minigptv2.cli.arguments import at_least
from minigptv2.cli.inference import add_decoding, add_model, decoding_of, load_model
from minigptv2.serve.config import Access, Limits

PASSWORD_VARIABLE = "MINIGPTV2_PASSWORD"


def add_commands(commands: Any) -> None:
    """Add this file's sub-commands."""
    defaults, access = Limits(), Access()
    serve = commands.add_parser(
        "serve",
        help="a chat page and an OpenAI-compatible API",
        description="Serve a chat page and the chat-completions protocol on one port. Listens on this machine alone "
        f"unless --host says otherwise; then a password is needed (--password-file, or {PASSWORD_VARIABLE}).",
        epilog="example: minigptv2 serve --model runs/demo/stage3/export",
    )
    add_model(serve)
    serve.add_argument("--name", help="what clients call the model; default: the folder's name")
    serve.add_argument("--host", default=access.host, help=f"address to listen on; default: {access.host}")
    serve.add_argument("--port", type=int, default=access.port, help=f"default: {access.port}")
    serve.add_argument("--password-file", metavar="FILE", help="its first line is the password, and programs' API key")
    serve.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that requests may call this server by; repeat for several",
    )
    serve.add_argument("--api-only", action="store_true", help="no page")
    serve.add_argument("--examples", metavar="FILE", help="JSON lines of questions, as `predict` reads them")
    serve.add_argument("--max-batch", type=at_least(1), default=defaults.max_batch, help="answers computed together")
    serve.add_argument(
        "--max-waiting", type=at_least(0), default=defaults.max_waiting, help="requests that wait beside them"
    )
    serve.add_argument(
        "--max-new-tokens", type=at_least(1), default=defaults.max_new_tokens, help="tokens of one answer"
    )
    serve.add_argument("--max-text", type=at_least(1), default=defaults.max_text, help="characters of one conversation")
    serve.add_argument("--max-images", type=at_least(1), default=defaults.max_images, help="images of one conversation")
    serve.add_argument("--max-megapixels", type=at_least(1), default=defaults.max_megapixels, help="of one picture")
    serve.add_argument("--max-body-mib", type=at_least(1), default=defaults.max_body_mib, help="of one request")
    serve.set_defaults(run=_serve)

    chat = commands.add_parser(
        "chat",
        help="talk about a picture in the terminal",
        description="Talk about a picture, turn by turn; /help lists the commands. Boxes are printed in pixels, and "
        "drawn into --draw FILE or into a terminal that can show pictures.",
        epilog="example: minigptv2 chat --model runs/demo/stage3/export photo.jpg --draw boxes.png",
    )
    add_model(chat)
    chat.add_argument("image", nargs="?", help="a JPEG, PNG or WebP file")
    chat.add_argument("--draw", metavar="FILE", help="write the picture with the latest answer's boxes here")
    chat.add_argument(
        "--show",
        default="auto",
        choices=("auto", "kitty", "iterm", "blocks", "none"),
        help="how pictures are shown in the terminal; auto: if it says that it can",
    )
    add_decoding(chat)
    chat.set_defaults(run=_chat)


def _serve(args: argparse.Namespace) -> int:
    limits = Limits(
        args.max_body_mib,
        args.max_megapixels,
        args.max_images,
        args.max_text,
        args.max_new_tokens,
        args.max_batch,
        args.max_waiting,
    )
    access = Access(args.host, args.port, _password(args.password_file), tuple(args.allowed_host))
    _check_port(access)
    examples = Path(args.examples) if args.examples else None
    if examples and not args.api_only:
        _need_page()
        from minigptv2.serve.page import load_examples

        load_examples(examples)  # wrong ones are told before the model is loaded
    elif not args.api_only:
        _need_page()
    from minigptv2.serve.app import serve

    name = args.name or Path(args.model).resolve().name
    serve(load_model(args), name=name, limits=limits, access=access, page=not args.api_only, examples=examples)
    return 0


def _need_page() -> None:
    """Raise `ConfigError` if what the page is made of is not installed."""
    from importlib.util import find_spec

    from minigptv2.errors import ConfigError

    if find_spec("gradio") is None or find_spec("prometheus_client") is None:
        raise ConfigError("serving needs more packages: pip install 'minigptv2[serve]'")


def _password(file: str | None) -> str | None:
    from minigptv2.errors import ConfigError

    if file is None:
        return os.environ.get(PASSWORD_VARIABLE) or None
    lines = Path(file).read_text().splitlines()
    if not lines or not lines[0].strip():
        raise ConfigError(f"--password-file {file}: its first line is empty")
    return lines[0].strip()


def _check_port(access: Access) -> None:
    """Raise `ConfigError`, before a model is loaded, if the address cannot be listened on."""
    import socket

    from minigptv2.errors import ConfigError

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(access.host, access.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {access.host} --port {access.port}: {error}") from error


def _chat(args: argparse.Namespace) -> int:
    from minigptv2.cli.inference import check_drawing
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
