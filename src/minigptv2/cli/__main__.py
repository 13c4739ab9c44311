"""Runs the `minigptv2` command under its old name: `python -m minigptv2.cli`."""

import sys

from minigptv2.cli import main

if __name__ == "__main__":
    sys.exit(main())
