"""`python -m minigptv2.cli`."""

import sys

from minigptv2.cli import main

sys.exit(main())
