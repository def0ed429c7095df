"""Kernels that move, choose and check KV blocks: on NVIDIA GPUs, and their twins on the CPU with the same bytes.

All of them work on flat arrays of addresses, so that they know neither layouts nor tiers. Names are fetched from their
modules at their first use: importing this package costs nothing and loads neither Numba nor CUDA.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "PairCopier": "copier",
    "PathTable": "paths",
    "bench_checksums": "victims_bench",
    "bench_gpu": "gpu_report",
    "bench_victims": "victims_bench",
    "calibrated": "calibrate",
    "checksum_blocks": "checksum",
    "checksum_blocks_device": "checksum_device",
    "checksum_regions": "checksum",
    "checksum_regions_device": "checksum_device",
    "choose_path": "paths",
    "copy_pairs": "copy",
    "copy_pairs_device": "copy_device",
    "copy_table": "copy_device",
    "gpu_available": "gpu",
    "merge_runs": "memcpy",
    "permute_blocks": "permute",
    "permute_blocks_device": "permute_device",
    "regret": "paths",
    "require_gpu": "gpu",
    "select_victims": "victims",
    "select_victims_device": "victims_device",
    "victims_workspace_bytes": "victims_device",
    "why_no_gpu": "gpu",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
