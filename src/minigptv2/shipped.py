"""Finds the run configs, recipes and DeepSpeed JSONs that come with the package.

In the repository they lie in `launch/configs`, `data_recipes` and `deepspeed_configs`. The build step of `setup.py`
copies these folders into the wheel. An editable install reads those of its source tree. So
`minigptv2 config launch/configs/toy_stage1.yaml` works in any folder.
"""

from __future__ import annotations

from pathlib import Path, PurePath

FOLDERS = ("launch/configs", "data_recipes", "deepspeed_configs")
"""What the wheel has a copy of. `setup.py` reads this line."""
COPIES = Path(__file__).parent / "shipped_files"
"""The folders in an installed wheel. A source tree and an editable install have none."""
SOURCES = Path(__file__).parents[2]
"""The repository, if the package is in its source tree."""


def find(path: str | PurePath) -> Path:
    """The file or folder `path` if it exists, else what came with the package under this name, else `path` as given."""
    given = Path(path)
    if given.exists() or given.is_absolute() or ".." in given.parts:
        return given
    if not any(given.is_relative_to(folder) for folder in FOLDERS):
        return given
    return next((place / given for place in (COPIES, SOURCES) if (place / given).exists()), given)
