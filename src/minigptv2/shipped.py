"""Finds the run configs, recipes and DeepSpeed JSONs that come with the package.

In the repository they lie in `launch/configs`, `data_recipes` and `deepspeed_configs`. The build step of `setup.py`
copies these folders into the wheel. An editable install reads those of its source tree. So
`minigptv2 config launch/configs/toy_stage1.yaml` works in any folder, and so does the name alone: `toy_stage1`.
"""

from __future__ import annotations

from pathlib import Path, PurePath

CONFIGS = "launch/configs"
FOLDERS = ("launch/configs", "data_recipes", "deepspeed_configs")
"""What the wheel has a copy of. `setup.py` reads this line."""
COPIES = Path(__file__).parent / "shipped_files"
"""The folders in an installed wheel. A source tree and an editable install have none."""
SOURCES = Path(__file__).parents[2]
"""The repository, if the package is in its source tree."""


def find(path: str | PurePath) -> Path:
    """The file or folder `path` if it exists, else what came with the package under this name, else `path` as given.

    A run config may be named without its folder, its suffix and what follows the stage: `stage1`.
    """
    given = Path(path)
    if given.exists() or given.is_absolute() or ".." in given.parts:
        return given
    if not any(given.is_relative_to(folder) for folder in FOLDERS):
        return _config_named(str(given)) or given
    return next((place / given for place in (COPIES, SOURCES) if (place / given).exists()), given)


def shipped_files(folder: str) -> list[Path]:
    """The YAML and JSON files of one of `FOLDERS` that came with the package, by name."""
    return sorted(file for file in find(folder).iterdir() if file.suffix in (".yaml", ".json"))


def config_names() -> list[str]:
    """The names of the run configs that came with the package."""
    return [file.stem for file in shipped_files(CONFIGS)]


def _config_named(name: str) -> Path | None:
    """The config with this name, or the only one whose name continues it after `_`."""
    if "." in name or "/" in name:
        return None
    configs = {file.stem: file for file in shipped_files(CONFIGS)}
    longer = [stem for stem in configs if stem.startswith(f"{name}_")]
    stem = name if name in configs else longer[0] if len(longer) == 1 else None
    return configs[stem] if stem else None
