"""`serve`: start a chat page and an OpenAI-compatible API."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from minigptv2.cli.arguments import Parser, add_model, add_names, at_least, load_model
from minigptv2.serve.config import Access, ClientLimits, Limits

PASSWORD_VARIABLE = "MINIGPTV2_PASSWORD"


def add_arguments(parser: Parser) -> None:
    """Add the options of `serve`."""
    defaults, access, clients = Limits(), Access(), ClientLimits()
    parser.description = (
        "Serve a chat page and the chat-completions protocol on one port. The server listens on this machine alone. "
        f"--host changes that, and then requires a password (--password-file, or {PASSWORD_VARIABLE})."
    )
    parser.epilog = "example: minigptv2 serve --model runs/demo/stage3/export"
    add_model(parser)
    parser.add_argument("--name", help="model name for clients. Default: the name of the folder")
    parser.add_argument("--host", default=access.host, help=f"address to listen on. Default: {access.host}")
    parser.add_argument("--port", type=int, default=access.port, help=f"default: {access.port}")
    parser.add_argument(
        "--password-file", metavar="FILE", help="file whose first line is the password, and the API key of programs"
    )
    add_names(parser, "--allowed-host", metavar="NAME", help="host name that requests may use for this server")
    add_names(parser, "--cors-origin", metavar="NAME", help="origin whose pages may use the API: https://name")
    add_names(parser, "--trusted-proxy", metavar="NAME", help="proxy whose X-Forwarded-For header names clients")
    parser.add_argument("--api-only", action="store_true", help="API only")
    parser.add_argument("--examples", metavar="FILE", help="JSON lines of questions, in the format of `predict`")
    for option, default, text in (
        ("--max-batch-size", defaults.max_batch, "maximum batch size"),
        ("--max-waiting", defaults.max_waiting, "maximum number of waiting requests"),
        ("--max-new-tokens", defaults.max_new_tokens, "maximum tokens in an answer"),
        ("--max-text", defaults.max_text, "maximum characters in a conversation"),
        ("--max-images", defaults.max_images, "maximum images in a conversation"),
        ("--max-megapixels", defaults.max_megapixels, "maximum size of an image"),
        ("--max-body-mib", defaults.max_body_mib, "maximum size of a request"),
        ("--max-connections", clients.max_connections, "maximum number of connections"),
        ("--max-client-connections", clients.max_client_connections, "maximum number of connections of one address"),
    ):
        about = f"{text}. Default: {default}"
        least = 0 if option == "--max-waiting" else 1
        parser.add_argument(option, type=at_least(least), default=default, metavar="N", help=about)
    parser.add_old_spelling("--max-batch", "--max-batch-size")
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    limits = Limits(
        args.max_body_mib,
        args.max_megapixels,
        args.max_images,
        args.max_text,
        args.max_new_tokens,
        args.max_batch_size,
        args.max_waiting,
    )
    access = Access(
        args.host,
        args.port,
        _password(args.password_file),
        allowed_hosts=tuple(args.allowed_host),
        trusted_proxies=tuple(args.trusted_proxy),
        cors_origins=tuple(args.cors_origin),
    )
    clients = ClientLimits(args.max_connections, args.max_client_connections)
    _check_port(access)
    examples = Path(args.examples) if args.examples else None
    _need_packages()
    if examples and not args.api_only:
        from minigptv2.serve.page import load_examples

        load_examples(examples)  # errors are reported before the model is loaded
    from minigptv2.serve.app import serve

    name = args.name or Path(args.model).resolve().name
    serve(
        load_model(args),
        name=name,
        limits=limits,
        access=access,
        clients=clients,
        page=not args.api_only,
        examples=examples,
    )
    return 0


def _need_packages() -> None:
    """Raise `ConfigError` if the packages of the server are not installed."""
    from importlib.util import find_spec

    from minigptv2.errors import ConfigError

    if not all(map(find_spec, ("fastapi", "uvicorn", "prometheus_client"))):
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
    """Raise `ConfigError`, before a model is loaded, if the server cannot listen on the address."""
    import socket

    from minigptv2.errors import ConfigError

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(access.host, access.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {access.host} --port {access.port}: {error}") from error
