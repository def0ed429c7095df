"""Make Numba's disk cache notice a change in *any* source that a compiled function was built from.

Numba keeps machine code under a function's name and file, and watches that file only. What is inlined from elsewhere (a
policy's helpers, an admission filter, the rules of a stack, the column numbers of the arrays) would go stale. Every
driver and every step therefore carries a digest of those sources in its name.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


@functools.cache
def sources_digest() -> str:
    """Return 12 hex digits that change with any source that state machines and drivers inline."""
    room = Path(__file__).parent
    files = [room / "admission.py", *sorted(room.glob("policies/*.py")), *sorted(room.glob("tiering/*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def keyed(function: Callable[..., Any], *files: str) -> Callable[..., Any]:
    """Put the digest into the name of a function that is about to be compiled with ``cache=True``.

    Parameters
    ----------
    function : callable
    *files : str
        Further sources that it inlines.
    """
    digest = sources_digest()
    if files:
        sources = b"".join(Path(file).read_bytes() for file in files)
        digest = hashlib.sha256(digest.encode() + sources).hexdigest()[:12]
    function.__qualname__ = f"{function.__qualname__}_{digest}"
    return function
