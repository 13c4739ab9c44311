"""Train one stage: `deepspeed launch/train.py --config launch/configs/stage1_pretrain.yaml key=value ...`."""

import sys

from minigptv2.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
