"""The server that `tests.soak.attack` attacks: a tiny model on a free port. It prints its address and serves."""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

from minigptv2.serve.config import Access
from minigptv2.tokenizer import load_tokenizer, train_tokenizer
from tests.serve.running import running
from tests.serve.tiny import tiny_predictor
from tests.soak.attack import PASSWORD


def main() -> None:
    """Serve until the process is terminated."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(train_tokenizer(["what is in the image"] * 9, Path(folder), 300))
    with running(tiny_predictor(tokenizer), access=Access(password=PASSWORD)) as address:
        print(address, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
