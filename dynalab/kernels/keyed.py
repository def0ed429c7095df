"""Make Numba's disk cache notice a change in *any* source that a kernel was built from.

Numba keeps machine code under a function's name and file, and watches that file only; what is inlined from another
one (the 16-byte accesses of ``words.py``) would go stale. A kernel that uses more than its own file carries a digest of
this package's sources in its name.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


@functools.cache
def sources_digest() -> str:
    """Return 12 hex digits that change with any source file of ``dynalab.kernels``."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def keyed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Put the digest into the name of a function that is about to be compiled with ``cache=True``."""
    function.__qualname__ = f"{function.__qualname__}_{sources_digest()}"
    return function
