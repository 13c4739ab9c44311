"""A dataset of several files, of which a change alters some, and what must come of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from minigptv2.corpora.own import OwnOptions
from tests.corpora.fuzz.outcome import Case, Expected


@dataclass
class Dataset:
    """Files by their path, the samples of each image by its id, and the outcome of a change, as in a `Case`."""

    files: dict[str, bytes] = field(default_factory=dict)
    samples: dict[str, Expected] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    """The path of the label file of each sample."""
    images: dict[str, str] = field(default_factory=dict)
    """The path of the image file of each sample."""
    fault: str = ""
    retry: OwnOptions | None = OwnOptions(skip_faults=True)
    silent: list[str] = field(default_factory=list)

    def lose(self, key: str, fault: str = "") -> None:
        """Expect an error that names a sample, and the dataset without it."""
        self.fault = fault or key
        del self.samples[key]

    def leave_out(self, key: str) -> None:
        """Expect the dataset without a sample, which is named and no error."""
        self.silent.append(key)
        del self.samples[key]

    def text(self, key: str) -> str:
        return self.files[self.labels[key]].decode()

    def put(self, key: str, text: str) -> None:
        self.files[self.labels[key]] = text.encode()

    def case(self, folder: Path) -> Case:
        return Case(folder / "set", b"", self.samples, self.fault, self.retry, tuple(self.silent), self.files)
