"""The plain-Python policies and filters of ``tests/kv`` are references here too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "kv"))
