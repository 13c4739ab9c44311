"""Checks the layers of the package, the single owner of each fact, and that every shipped file loads."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from minigptv2.data.config import Recipe
from minigptv2.data.plan import load_recipe
from minigptv2.engine.config import RUN_OWNED, load_deepspeed_config
from minigptv2.errors import ConfigError
from minigptv2.run_config import load_run_config
from minigptv2.tasks import TASKS
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "src" / "minigptv2"

LAYERS = [
    {
        "errors",
        "files",
        "foreign_files",
        "secrets",
        "secret_forms",
        "terminal_text",
        "redacted_files",
        "progress_bars",
        "boxes",
        "batch",
        "pack_layout",
        "shipped",
        "damaged_text",
        "machine_memory",
        "user_cache",
    },
    {"config", "config_values", "config_interpolation", "record", "tokenizer", "tokenizer_json", "draw", "run_folder"},
    {"tasks", "cluster", "tracking"},
    {"prompt", "typed_marks"},
    {"shards", "model", "engine"},
    {"data", "corpora", "predict", "convert"},
    {"heldout", "serve"},
    {"run_config", "evaluate"},
    {"planner", "demo", "integrations"},
    {"train", "doctor"},
    {"cli", "api", "__main__"},
]
"""From the lowest layer up. A module imports from its own package and from lower layers only."""
SAME_LAYER = (
    {
        "errors",
        "files",
        "foreign_files",
        "secrets",
        "secret_forms",
        "terminal_text",
        "redacted_files",
        "progress_bars",
        "boxes",
        "batch",
        "pack_layout",
        "shipped",
        "damaged_text",
        "machine_memory",
        "user_cache",
    },
    {"config", "config_values", "config_interpolation", "record", "tokenizer", "tokenizer_json", "draw", "run_folder"},
    {"prompt", "typed_marks"},
    {"cli", "api", "__main__"},
)
"""Layers of single modules, which may import each other. Packages of one layer never do."""
TASK_NAMES_OF_OTHER_THINGS = (
    "corpora.formats.coco_captions",  # the keys of an annotation
    "corpora.formats.csv_captions",  # the columns of a table
    "corpora.sources.toy",  # the names of its corpora
)
IDENTIFIERS = {task.identifier: type(task).__module__ for task in TASKS.values() if task.identifier}
"""The module of each task that has an identifier."""
BASES = ("base.yaml", "toy.yaml")
NO_TORCH = (
    "run_config",
    "config",
    "errors",
    "model.config",
    "model.backbones",
    "data.config",
    "engine.config",
    "heldout.config",
    "serve.config",
    "cluster.attempts",
    "cluster.failure",
    "cluster.recorder",
    "cluster.rendezvous",
    "cluster.restart",
    "cluster.signals",
    "cluster.slurm",
)


def modules() -> list[tuple[str, Path]]:
    """Dotted name below `minigptv2`, and file, of every module of the package."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        dotted = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if dotted != "__init__":
            found.append((dotted, file))
    return found


def imports_of(file: Path) -> set[str]:
    """Dotted names below `minigptv2` that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "minigptv2":
            below = node.module.removeprefix("minigptv2").removeprefix(".")
            found |= {below} if below else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("minigptv2.") for a in node.names if a.name.startswith("minigptv2.")}
    return {name for name in found if name != "__version__"}


def layer_of(name: str) -> int:
    for number, members in enumerate(LAYERS):
        if name.split(".")[0] in members:
            return number
    raise AssertionError(f"{name} is in no layer; add it to LAYERS and to src/minigptv2/README.md")


@pytest.mark.parametrize(("name", "file"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_from_lower_layers_only(name: str, file: Path) -> None:
    package = name.split(".")[0]
    for imported in imports_of(file):
        other = imported.split(".")[0]
        together = any(package in group and other in group for group in SAME_LAYER)
        if other != package and not together:
            assert layer_of(imported) < layer_of(name), f"{name} imports {imported}"


@pytest.mark.parametrize("name", NO_TORCH)
def test_configs_import_no_torch(name: str) -> None:
    import subprocess
    import sys

    code = f"import minigptv2.{name}, sys; assert not {{'torch', 'transformers', 'deepspeed'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("pattern", "owners"),
    [
        (r"\[INST\]", {"prompt.py"}),
        (r"<Img>", {"prompt.py"}),
        (r"<delim>", {"boxes.py"}),
        (
            rf"({'|'.join(map(re.escape, IDENTIFIERS))})\"",
            {f"{module.removeprefix('minigptv2.').replace('.', '/')}.py" for module in IDENTIFIERS.values()},
        ),
        (r"\"</?p>\"", {"tasks/answers.py"}),
        (r"0\.48145466", {"model/backbones.py"}),
        (r"import .*omegaconf|from omegaconf", {"config.py"}),
        (r"-100\b", {"batch.py"}),
        (r"\"(checkpoints|bundles|stacks|best\.json|log\.txt)\"", {"run_folder.py"}),
        (r"(metrics|heldout|attempts)\.jsonl", {"run_folder.py"}),
        (r"/ \"(export|tensorboard)\"", {"run_folder.py"}),
    ],
)
def test_literals_have_one_owner(pattern: str, owners: set[str]) -> None:
    """Docstrings, comments and help texts may speak of a literal; code may not repeat it."""
    found = set()
    for name, file in modules():
        code = ast.unparse(_without_docstrings(ast.parse(file.read_text())))
        if name.split(".")[0] != "cli" and re.search(pattern, code.replace("'", '"')):
            found.add(str(file.relative_to(PACKAGE)))
    assert found == owners


@pytest.mark.parametrize(("name", "file"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_no_module_branches_on_the_name_of_a_task(name: str, file: Path) -> None:
    """What differs between tasks is part of a `Task`. Data may name a task: a corpus, a benchmark, a recipe."""
    if name.split(".")[0] == "tasks" or name in TASK_NAMES_OF_OTHER_THINGS:
        return
    for node in ast.walk(ast.parse(file.read_text())):
        compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "TASKS":
            compared = [node.slice]
        constants = {c.value for part in compared for c in ast.walk(part) if isinstance(c, ast.Constant)}
        assert not constants & set(TASKS), f"{name}:{node.lineno} {ast.unparse(node)}"  # type: ignore[attr-defined]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


@pytest.mark.parametrize("file", sorted((REPOSITORY / "launch" / "configs").glob("*.yaml")), ids=lambda f: f.name)
def test_every_run_config_resolves(file: Path) -> None:
    if file.name in BASES:  # not a stage by itself: give it what stages add
        words = [
            "stage=x",
            "run_dir=x",
            "data.recipe=x",
            "train.steps=1",
            "train.global_batch_size=1",
            "train.learning_rate=1",
        ]
        load_run_config(file, words)
        return
    config = load_run_config(file).value
    assert (REPOSITORY / config.data.recipe).is_file()
    assert (REPOSITORY / config.train.deepspeed).is_file()
    assert config.stage in config.run_dir


@pytest.mark.parametrize("file", sorted((REPOSITORY / "data_recipes").glob("*.yaml")), ids=lambda f: f.name)
def test_every_recipe_loads(file: Path) -> None:
    recipe = load_recipe(file)
    assert isinstance(recipe, Recipe) and recipe.corpora


@pytest.mark.parametrize("file", sorted((REPOSITORY / "deepspeed_configs").glob("*.json")), ids=lambda f: f.name)
def test_every_deepspeed_config_is_accepted_by_deepspeed(file: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    document = load_deepspeed_config(file)
    DeepSpeedConfig({**document, "train_batch_size": 1, "train_micro_batch_size_per_gpu": 1})


@pytest.mark.parametrize("key", RUN_OWNED)
def test_a_json_that_sets_a_runs_number_is_refused_by_name(tmp_path: Path, key: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({key: 1}))
    with pytest.raises(ConfigError, match=f"sets {key}. Set such numbers in"):
        load_deepspeed_config(file)


def test_every_config_field_has_a_docstring() -> None:
    for name, file in modules():
        if name.split(".")[-1] not in ("config", "run_config") or name == "config":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                for field, following in zip(node.body, [*node.body[1:], None], strict=True):
                    if isinstance(field, ast.AnnAssign):
                        documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                        assert documented, f"{name}.{node.name}.{ast.unparse(field.target)}"


UNIQUE_EXCEPT = ("__init__", "config")
"""Module names that several packages have. So do files in `cli` (named after commands) and `corpora/sources`."""


def test_module_names_are_unique() -> None:
    places: dict[str, list[str]] = {}
    for name, file in modules():
        if file.stem not in UNIQUE_EXCEPT and not name.startswith(("cli.", "corpora.sources.")):
            places.setdefault(file.stem, []).append(name)
    assert not {stem: names for stem, names in places.items() if len(names) > 1}


def test_public_classes_have_unique_names() -> None:
    places: dict[str, list[str]] = {}
    for name, file in modules():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    assert not {cls: names for cls, names in places.items() if len(names) > 1}
