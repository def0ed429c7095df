"""KV block identity, layouts and the policies that choose which blocks stay.

Names are imported when they are first used: layouts need no compiler, hashes and policies do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynalab.kv.layout import KVLayout

__all__ = ["KVLayout"]

_HOMES = {
    "KVLayout": "layout",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
