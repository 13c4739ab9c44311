"""`configs`: list the run configs, recipes and DeepSpeed JSONs that come with the package, or copy them."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from minigptv2.cli.arguments import Parser
from minigptv2.errors import ConfigError
from minigptv2.shipped import FOLDERS, shipped_files


def add_arguments(parser: Parser) -> None:
    """Add the commands of `configs`."""
    commands = parser.add_commands()
    listing = commands.add_parser("list", help="print their names")
    listing.description = "Commands take these files by path, and run configs by name alone, in any folder."
    listing.set_defaults(run=_list)
    copy = commands.add_parser("copy", help="copy them into a folder, to edit them")
    copy.description = "Commands that run in this folder use the copies in the place of the shipped files."
    copy.epilog = "example: minigptv2 configs copy . && minigptv2 train stage1"
    copy.add_argument("folder", metavar="DIR", help="where the folders of the files are written")
    copy.set_defaults(run=_copy)


def _list(args: argparse.Namespace) -> int:
    for folder in FOLDERS:
        print(*(f"{folder}/{file.name}" for file in shipped_files(folder)), sep="\n")
    return 0


def _copy(args: argparse.Namespace) -> int:
    """Copy all files, or none if one exists already."""
    sources = {Path(args.folder, folder, file.name): file for folder in FOLDERS for file in shipped_files(folder)}
    if existing := [str(target) for target in sources if target.exists()]:
        raise ConfigError(f"{existing[0]} exists, and is not overwritten: choose another folder, or remove it")
    for target, source in sources.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    print(f"{len(sources)} files in {args.folder}")
    return 0
