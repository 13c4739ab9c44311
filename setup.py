"""Defines the package. Versions are ranges here. `constraints.txt` pins the set that is tested."""

import shutil
from ast import literal_eval
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

VERSION = Path("src/minigptv2/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]
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


setup(
    name="minigptv2",
    version=VERSION,
    description="Train MiniGPT-v2 in three stages under DeepSpeed ZeRO-3",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    cmdclass={"build_py": BuildWithShippedFiles},
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "minigptv2": [
            "corpora/sources/*.json",
            "evaluate/metrics/*.txt",
            "serve/static/*",
            "README.md",
        ]
    },
    install_requires=[
        "torch>=2.11",
        "deepspeed>=0.19.8,<0.20",
        "transformers>=5.17",
        "peft>=0.19",
        "webdataset>=1.0",
        "omegaconf>=2.3",
        "tensorboard>=2.18",
        "safetensors>=0.6",
        "sentencepiece>=0.2",
        "tokenizers>=0.22",
        "numpy>=2.0",
        "pillow>=12.0",
        "simplejpeg>=1.9",
        "tqdm>=4.66",
        "shtab>=1.7",
        "ninja>=1.11",
    ],
    extras_require={
        "gpu": ["liger-kernel>=0.8"],
        "flash": ["flash-attn>=2.8"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.30", "prometheus_client>=0.20"],
        "bench": ["megatron-energon", "litdata", "binpacking"],
        # `photographs` reads images of these packages. gradio is never imported.
        "demo": ["matplotlib>=3.10", "scikit-image>=0.26", "scikit-learn>=1.8", "gradio>=6.20"],
        "remote": ["fsspec>=2025.3", "aiohttp>=3.10", "s3fs>=2025.3"],
        "metrics": ["pycocoevalcap>=1.2", "simplemma>=2.0"],
        "corpora": ["pyarrow>=20"],
        "tables": ["pyarrow>=20"],
        "pretrained": ["gguf>=0.19", "onnx>=1.19"],
        "dev": [
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "aiohttp>=3.10",
            "hypothesis>=6.150",
            "simplemma>=2.0",
            "ruff>=0.14",
            "mypy>=1.18",
            "openai>=2.0",
            "httpx>=0.28",
            "pyarrow>=20",
            "datasets>=4.0",
            "jsonschema>=4.23",
        ],
        "browser": ["selenium>=4.30"],
    },
    entry_points={"console_scripts": ["minigptv2=minigptv2.cli:main"]},
)
