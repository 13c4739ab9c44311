"""Checks that the public names lead somewhere and that importing the package loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from textwrap import dedent

import pytest

import minigptv2
from minigptv2 import api


@pytest.mark.parametrize("name", api.__all__)
def test_every_public_name_is_an_attribute_of_the_package(name: str) -> None:
    module, _, attribute = api._HOMES[name].partition(":")
    assert getattr(minigptv2, name) is getattr(import_module(f"minigptv2.{module}"), attribute)


def test_the_names_are_listed_once() -> None:
    assert set(api.__all__) == set(api._HOMES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        minigptv2.lode  # noqa: B018


def test_the_example_names_only_what_exists() -> None:
    assert api.__doc__
    tree = ast.parse(dedent(api.__doc__.partition("\n\n")[2]))
    named = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "minigptv2"
    }
    assert named and named <= set(api.__all__)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import minigptv2, sys; minigptv2.TASKS; assert not {'torch', 'transformers', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
