"""Victim selection on NVIDIA GPUs: four launches, one pass over all blocks, nothing that the host must wait for.

A radix select whose one digit has its bounds drawn from the data. Fixed digits fail where the data are lumped: with a
single ancient time stamp among those of the last hour, the leading bits put all other blocks into one bin, and every
further digit is another pass. So:

1. *sample*: one thread block sorts the keys of up to 1,024 blocks, one from each equal stretch. A key is (priority,
   last use, -position, block number), so that no two are equal, and any lump or tie is cut like all the rest.
2. *filter*: the first sorted keys, as many as are certain (six sigma) to reach beyond the k-th victim, are the bounds
   of the digit's bins. Blocks beyond the last are dropped; the others are counted by bin and put on a list.
3. *scatter*: the list goes into bins, up to the one in which the k-th victim falls. Should the sample have erred, the
   blocks that were dropped make one more bin.
4. *rank*: a block's place is its bin's start, plus how many in its bin have smaller keys; 32 threads count for each.

However the sample falls, the result is exact, and equal to :func:`dynalab.kernels.victims.select_victims` bit for bit.

Traffic for a million blocks and k = 1,000: 17 MB read once (3.5 microseconds at 4.8 TB/s), some 16,000 blocks on the
list, some 2,000 in the bins that are ranked by 2 million comparisons. What remains is the four launches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from dynalab.errors import ConfigError
from dynalab.kernels.device_arrays import DeviceArray, memory_for, ordered_on
from dynalab.kernels.gpu import require_gpu, simulated, stream_handle
from dynalab.kernels.launch import WARP
from dynalab.kernels.victims import check_columns
from dynalab.kernels.victims_kernels import (
    FILTER_KERNEL,
    ITEMS,
    RANK_KERNEL,
    SAMPLE,
    SAMPLE_KERNEL,
    SCATTER_KERNEL,
    STATE_BYTES,
)

_THREADS: Final = 256
_SAMPLE_THREADS: Final = 512
_MOST_BLOCKS: Final = 2048
#: Bytes of the workspace per block: a list of (number, bin), and the bins' (key, number, bin).
_BYTES_PER_BLOCK: Final = 32


@dataclass(frozen=True)
class SelectPlan:
    """How a selection is cut.

    Attributes
    ----------
    samples : int
        Keys that are sorted, a power of two.
    bounds : int
        How many of them bound the bins.
    keep_all : int
        1 if even the blocks beyond the last bound are listed.
    """

    samples: int
    bounds: int
    keep_all: int


def plan_selection(n: int, k: int, most_samples: int = SAMPLE) -> SelectPlan:
    """Choose how many bounds reach beyond the k-th of n blocks, but for one case in a thousand million.

    Of `samples` keys some ``k * samples / n`` are below the k-th victim's, with a variance of at most as much.

    Examples
    --------
    >>> plan_selection(1_000_000, 1000)
    SelectPlan(samples=1024, bounds=17, keep_all=0)
    >>> plan_selection(1_000_000, 1_000_000)
    SelectPlan(samples=1024, bounds=1024, keep_all=1)
    """
    samples = min(most_samples, 1 << (n.bit_length() - 1))
    expected = k * samples / n
    bounds = min(samples, math.ceil(expected + 6 * math.sqrt(expected) + 9))
    return SelectPlan(samples, bounds, int(bounds == samples))


def victims_workspace_bytes(n: int) -> int:
    """Return the device memory that a selection among `n` blocks works in.

    Examples
    --------
    >>> victims_workspace_bytes(1_000_000)
    32049240
    """
    return STATE_BYTES + _BYTES_PER_BLOCK * n


def select_victims_device(
    priority: Any,
    last_use: Any,
    position: Any,
    pinned: Any,
    k: int,
    *,
    stream: Any = None,
    out: Any = None,
    workspace: Any = None,
    plan: SelectPlan | None = None,
) -> Any:
    """Return the k best victims, best first, as `dynalab.kernels.select_victims` does, but from and to device memory.

    Nothing waits for the device: the result is there once the work on the stream is done up to here.

    Parameters
    ----------
    priority, last_use, position, pinned : device arrays [n]
        Of the types that `select_victims` takes, contiguous; of CuPy, Numba, PyTorch or the like.
    k : int
        Victims wanted.
    stream : int, object or None
        See `dynalab.kernels.gpu.stream_handle`.
    out : device array int32 [min(k, n)], optional
        Where the result goes; by default a new CuPy array.
    workspace : device array, optional
        Contiguous memory of at least `victims_workspace_bytes` bytes, which must not be used by another selection that
        may run at the same time; by default from CuPy's pool.
    plan : SelectPlan, optional
        By default that of `plan_selection`. Any plan gives the same result.

    Returns
    -------
    device array int32 [min(k, n)]
        Block numbers; -1 from where there are no blocks left that are not pinned.

    Raises
    ------
    ConfigError
        If `k` is negative, a column or the workspace does not fit, or there is no GPU.
    """
    if k < 0:
        raise ConfigError(f"k: {k} victims cannot be; pass 0 or more")
    if not simulated():
        require_gpu("select_victims_device")
    arrays = {"priority": priority, "last_use": last_use, "position": position, "pinned": pinned}
    columns = {field: DeviceArray(field, array) for field, array in arrays.items()}
    n, flips = check_columns(**{field: (column.dtype, column.shape) for field, column in columns.items()})
    k = min(k, n)
    handle = stream_handle(stream)
    with ordered_on(handle):
        out = memory_for("out", out, "int32", k)
        if k:
            workspace = memory_for("workspace", workspace, "uint8", victims_workspace_bytes(n), at_least=True)
            wide = int(columns["pinned"].dtype.itemsize == 4)
            table = (*(column.address for column in columns.values()), wide, *_signed(flips), n)
            state = DeviceArray("workspace", workspace).address
            _launch(handle, table, k, plan or plan_selection(n, k), state, DeviceArray("out", out).address)
    return out


def _launch(stream: int, table: tuple[int, ...], k: int, plan: SelectPlan, state: int, out: int) -> None:
    """Start the four kernels."""
    n = table[-1]
    listed, binned = state + STATE_BYTES, state + STATE_BYTES + 8 * n
    cut = (plan.bounds, plan.keep_all, state)
    blocks = min(_MOST_BLOCKS, -(-n // (_THREADS * ITEMS)))
    # In the bins are k blocks and the rest of the last bin; four times the mean covers most of what chance makes of it.
    ranked = min(n, k + 4 * n // plan.samples)
    SAMPLE_KERNEL.launch(1, min(_SAMPLE_THREADS, plan.samples), stream, *table, plan.samples, state)
    FILTER_KERNEL.launch(blocks, _THREADS, stream, *table, *cut, listed)
    SCATTER_KERNEL.launch(blocks, _THREADS, stream, *table, *cut, listed, binned, k)
    RANK_KERNEL.launch(
        min(_MOST_BLOCKS, -(-ranked * WARP // _THREADS)), _THREADS, stream, n, *cut, binned, k, WARP, out
    )


def _signed(flips: tuple[int, int, int]) -> tuple[int, int, int]:
    """Turn the flips of the CPU's twin into those of the kernels, which look at the upper half of a last use alone."""
    return flips[0], flips[1] >> 32, flips[2]
