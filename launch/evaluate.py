"""Evaluate on several ranks: `torchrun --nproc-per-node 8 launch/evaluate.py --model ...`."""

import sys

from minigptv2.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
