"""Make Numba's disk cache notice a change in *any* source that a compiled function was built from.

Numba keeps machine code under a function's name and file, and watches that file only. What is inlined from elsewhere (a
policy's helpers, an admission filter, the rules of a stack, the column numbers of the arrays) would go stale. Every
driver and every step therefore carries a digest of those sources in its name.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba


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


class Late:
    """A function that is compiled, or found on disk, when it is first called: importing must stay cheap.

    Parameters
    ----------
    function : callable
        Called from Python only; calls the functions of policies and rules.
    signature : numba signature
    *files : str
        Further sources that it inlines, see :func:`keyed`.
    """

    def __init__(self, function: Callable[..., Any], signature: Any, *files: str) -> None:
        self._function = function
        self._signature = signature
        self._files = files
        self._compiled: Callable[..., Any] | None = None
        self._lock = threading.Lock()
        functools.update_wrapper(self, function)

    def load(self) -> Callable[..., Any]:
        """Return the compiled function."""
        with self._lock:
            if self._compiled is None:
                options = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True}
                with warnings.catch_warnings():
                    # Functions as values are an experimental feature of Numba, and it says so once per compilation.
                    warnings.simplefilter("ignore", numba.NumbaExperimentalFeatureWarning)
                    jit = numba.njit(self._signature, cache=True, **options)
                    self._compiled = jit(keyed(self._function, *self._files))
            return self._compiled

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function."""
        return (self._compiled or self.load())(*arguments)


def late(signature: Any, *files: str) -> Callable[[Callable[..., Any]], Late]:
    """Decorate a function as :class:`Late`."""
    return lambda function: Late(function, signature, *files)
