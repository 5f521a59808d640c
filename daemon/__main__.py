"""`python -m gruard.daemon` and the `gruard` command."""

from __future__ import annotations

import os
import sys

# One thread: batches of a gateway are small, and a pool of idle threads costs memory and wakes the board.
# It has to be said before numpy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from gruard.daemon.cli import main

if __name__ == "__main__":
    sys.exit(main())
