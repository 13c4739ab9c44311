"""Runs the `minigptv2` command: `python -m minigptv2`."""

import sys

from minigptv2.cli import main

if __name__ == "__main__":
    sys.exit(main())
