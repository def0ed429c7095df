"""KV block identity, layouts and the policies that choose which blocks stay.

Names are imported when they are first used: layouts need no compiler, hashes and policies do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynalab.kv.block_state import BlockState, TokenBlock, TokenPage, cut_pages
    from dynalab.kv.identity import block_hashes, chain_hashes, sequence_hashes
    from dynalab.kv.layout import KVLayout

__all__ = [
    "BlockState",
    "KVLayout",
    "TokenBlock",
    "TokenPage",
    "block_hashes",
    "chain_hashes",
    "cut_pages",
    "sequence_hashes",
]

_HOMES = {
    "KVLayout": "layout",
    "block_hashes": "identity",
    "chain_hashes": "identity",
    "sequence_hashes": "identity",
    "BlockState": "block_state",
    "TokenBlock": "block_state",
    "TokenPage": "block_state",
    "cut_pages": "block_state",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
