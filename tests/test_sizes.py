"""Checks the sizes of functions and files, and that public functions have docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

MAX_FILE_LINES, MAX_FUNCTION_LINES, P90_FUNCTION_LINES, MAX_POSITIONAL, MAX_PARAMETERS = 400, 80, 25, 5, 8
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def package_files() -> list[Path]:
    return sorted((REPOSITORY / "src").rglob("*.py"))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Place and definition of every function of the package."""
    for file in package_files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, FUNCTION):
                yield f"{file.relative_to(REPOSITORY)}:{node.lineno} {node.name}", node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def parameters(arguments: list[ast.arg]) -> list[str]:
    return [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]


def test_no_file_is_too_long() -> None:
    files = [file for folder in ("src", "tests", "benchmarks", "docs") for file in (REPOSITORY / folder).rglob("*.py")]
    lines = {str(file.relative_to(REPOSITORY)): len(file.read_text().splitlines()) for file in files}
    assert not {name: count for name, count in lines.items() if count > MAX_FILE_LINES}


def test_functions_are_short() -> None:
    lengths = {place: length(node) for place, node in functions()}
    assert not {place: lines for place, lines in lengths.items() if lines > MAX_FUNCTION_LINES}
    assert sorted(lengths.values())[int(0.9 * len(lengths))] <= P90_FUNCTION_LINES


def test_functions_have_few_positional_parameters() -> None:
    found = {
        place: names
        for place, node in functions()
        if len(names := parameters([*node.args.posonlyargs, *node.args.args])) > MAX_POSITIONAL
    }
    assert not found


def test_functions_have_few_parameters() -> None:
    found = {
        place: names
        for place, node in functions()
        if len(names := parameters([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])) > MAX_PARAMETERS
    }
    assert not found


def test_public_functions_have_docstrings() -> None:
    """Methods and functions at module level. Overloads and protocol members count, too."""
    missing = []
    for file in package_files():
        tree = ast.parse(file.read_text())
        scopes: list[ast.Module | ast.ClassDef] = [
            tree,
            *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")),
        ]
        missing += [
            f"{file.relative_to(REPOSITORY)}:{node.lineno} {node.name}"
            for scope in scopes
            for node in scope.body
            if isinstance(node, FUNCTION) and not node.name.startswith("_") and not ast.get_docstring(node)
        ]
    assert not missing
