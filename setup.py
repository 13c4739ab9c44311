"""Copies the shipped folders into the wheel. `pyproject.toml` defines the package."""

import shutil
from ast import literal_eval
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = literal_eval(Path("src/minigptv2/shipped.py").read_text().split("FOLDERS = ")[1].split("\n")[0])


class BuildWithShippedFiles(build_py):
    """Copies the folders of `minigptv2/shipped.py` into the wheel. An editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in SHIPPED:
            target = Path(self.build_lib, "minigptv2", "shipped_files", folder)
            if target.exists():  # an earlier build in the same folder
                shutil.rmtree(target)
            shutil.copytree(folder, target)


setup(cmdclass={"build_py": BuildWithShippedFiles})
