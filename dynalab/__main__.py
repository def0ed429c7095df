"""``python -m dynalab``: the same as the ``dynalab`` command."""

from __future__ import annotations

import sys

from dynalab.cli import main

if __name__ == "__main__":
    sys.exit(main())
