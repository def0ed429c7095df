"""How tests and benchmarks ask libcachesim, the independent simulator in C that comes with the extra "test"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

libcachesim = pytest.importorskip("libcachesim", reason="libcachesim comes with the extra 'test'")

THEIRS = {
    "fifo": libcachesim.FIFO,
    "lru": libcachesim.LRU,
    "lfu": libcachesim.LFU,
    "clock": libcachesim.Clock,
    "sieve": libcachesim.Sieve,
    "s3fifo": libcachesim.S3FIFO,
    "arc": libcachesim.ARC,
    "2q": libcachesim.TwoQ,
    "slru": libcachesim.SLRU,
    "wtinylfu": libcachesim.WTinyLFU,
    "lirs": libcachesim.LIRS,
    "belady": libcachesim.Belady,
}


def next_uses(ids: np.ndarray) -> np.ndarray:
    """Index of the next access to the same block, -1 for none."""
    order = np.argsort(ids, kind="stable")
    same = ids[order[:-1]] == ids[order[1:]]
    following = np.full(ids.size, -1, np.int64)
    following[order[:-1][same]] = order[1:][same]
    return following


def write_oracle(ids: np.ndarray, path: Path) -> Path:
    """Write `ids` (from 1 upward) in its fastest format, oracleGeneral: 24 bytes per access with the next use."""
    records = np.zeros(ids.size, [("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
    records["time"], records["id"], records["size"] = np.arange(ids.size), ids, 1
    records["next"] = next_uses(ids)
    records.tofile(path)
    return path


def their_hit_ratio(name: str, capacity: int, path: Path) -> float:
    """Replay a file of :func:`write_oracle`."""
    reader = libcachesim.TraceReader(
        trace=str(path),
        trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE,
        reader_init_params=libcachesim.ReaderInitParam(ignore_obj_size=True),
    )
    return 1.0 - THEIRS[name](capacity).process_trace(reader)[0]
