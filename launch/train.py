"""Train one stage: `deepspeed launch/train.py --config launch/configs/stage1_pretrain.yaml key=value ...`."""

import sys

from minigptv2.cluster.signals import listen

if __name__ == "__main__":
    listen()  # before the seconds of imports: a signal that comes while loading is kept for the first step's edge
    from minigptv2.train import main

    sys.exit(main())
