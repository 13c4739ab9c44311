"""Finds the run configs, recipes and DeepSpeed JSONs that come with the package.

In the repository they lie in `launch/configs`, `data_recipes` and `deepspeed_configs`. The build step of `setup.py`
copies these folders into the wheel, so that `minigptv2 config launch/configs/toy_stage1.yaml` works in any folder.
"""

from __future__ import annotations

from pathlib import Path, PurePath

FOLDERS = ("launch/configs", "data_recipes", "deepspeed_configs")
"""What the wheel has a copy of. `setup.py` reads this line."""
COPIES = Path(__file__).parent / "shipped_files"
"""The folders in an installed wheel. A source tree and an editable install have none."""


def find(path: str | PurePath) -> Path:
    """The file or folder `path` if it exists, else the wheel's copy of it if there is one, else `path` as given."""
    given = Path(path)
    if given.exists() or given.is_absolute() or ".." in given.parts:
        return given
    copy = COPIES / given
    is_shipped = any(given.is_relative_to(folder) for folder in FOLDERS)
    return copy if is_shipped and copy.exists() else given
