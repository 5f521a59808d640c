"""`python -m gruard.daemon` and the `gruard` command."""

from __future__ import annotations

import sys

from gruard.daemon.cli import main

if __name__ == "__main__":
    sys.exit(main())
