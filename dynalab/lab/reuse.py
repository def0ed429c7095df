"""How the blocks of a trace are reused: how often, how soon, and what age and count tell about the next use.

Replacement policies bet on such regularities. LRU bets on age, LFU on count; these functions count in the trace itself
which bet pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.workload import Trace

if TYPE_CHECKING:
    import pandas as pd

#: Classes of use counts, as (label, lowest, highest).
COUNTS = (("1", 1, 1), ("2", 2, 2), ("3", 3, 3), ("4-7", 4, 7), ("8-63", 8, 63), ("64+", 64, 2**31))


def access_times(trace: Trace) -> npt.NDArray[np.float64]:
    """Return the arrival in seconds of the request that makes each access, shape (n_accesses,)."""
    trace.require_blocks()
    return np.repeat(trace.arrival, np.diff(trace.offsets))


def waits(trace: Trace) -> npt.NDArray[np.float64]:
    """Return the seconds from each access to the next one of the same block; infinite where there is none.

    Returns
    -------
    ndarray of float64, shape (n_accesses,)

    Examples
    --------
    >>> from dynalab.workload import Trace
    >>> waits(Trace.from_columns([0, 5, 7], [1, 1, 1], [1, 1, 1], [3, 4, 3], block_tokens=1))
    array([ 7., inf, inf])
    """
    times = access_times(trace)
    order = np.argsort(trace.block_ids, kind="stable")
    ids = trace.block_ids[order]
    follows = np.flatnonzero(ids[1:] == ids[:-1])
    result = np.full(times.size, np.inf)
    result[order[follows]] = times[order[follows + 1]] - times[order[follows]]
    return result


def uses_so_far(trace: Trace) -> npt.NDArray[np.int64]:
    """Return how often the block of each access has been used up to then, this access included."""
    trace.require_blocks()
    order = np.argsort(trace.block_ids, kind="stable")
    ids = trace.block_ids[order]
    place = np.arange(ids.size)
    first = np.ones(ids.size, bool)
    first[1:] = ids[1:] != ids[:-1]
    result = np.empty(ids.size, np.int64)
    result[order] = place - np.maximum.accumulate(np.where(first, place, 0)) + 1
    return result


def popularity(trace: Trace) -> pd.DataFrame:
    """Share out blocks, accesses and possible hits by how often a block is used in the whole trace.

    Returns
    -------
    pandas.DataFrame
        Index ``uses`` (classes of :data:`COUNTS`); columns ``blocks``, ``accesses`` and ``hits`` as fractions of their
        sums. A block used n times can hit n - 1 times.
    """
    import pandas as pd

    trace.require_blocks()
    uses = np.bincount(trace.block_ids)
    rows = []
    for _, low, high in COUNTS:
        own = uses[(uses >= low) & (uses <= high)]
        rows.append((own.size / uses.size, own.sum() / uses.sum(), (own - 1).sum() / max((uses - 1).sum(), 1)))
    index = pd.Index([label for label, _, _ in COUNTS], name="uses")
    return pd.DataFrame(rows, index, ["blocks", "accesses", "hits"])


def reuse_chance(trace: Trace, ages: Sequence[float], within: float, *, at_least: int = 30) -> pd.DataFrame:
    """Return the chance that a block which has rested for `age` seconds is used again in the next `within` seconds.

    Only accesses whose whole observation window lies inside the trace count, so that its end biases nothing. Block 0,
    which traces with a common head use in every request, is left out.

    Parameters
    ----------
    trace : Trace
    ages : sequence of float
        Seconds since the last use, from 0 up.
    within : float
        Seconds.
    at_least : int
        Blocks at rest that a chance is computed from; fewer give nan.

    Returns
    -------
    pandas.DataFrame
        Rows: uses so far (classes of :data:`COUNTS` but the last, which one popular block would fill); columns: `ages`.

    Raises
    ------
    ConfigError
        If the trace is shorter than the longest age and `within` together.
    """
    import pandas as pd

    window = max(ages) + within
    if trace.duration <= window:
        raise ConfigError(f"within: the trace spans {trace.duration:g} s, shorter than age and window, {window:g} s")
    counted = (access_times(trace) + window <= trace.duration) & (trace.block_ids != 0)
    wait, uses = waits(trace)[counted], uses_so_far(trace)[counted]
    rows = {}
    for label, low, high in COUNTS[:-1]:
        own = wait[(uses >= low) & (uses <= high)]
        resting = np.array([(own > age).sum() for age in ages])
        again = np.array([((own > age) & (own <= age + within)).sum() for age in ages])
        rows[label] = np.where(resting >= at_least, again / np.maximum(resting, 1), np.nan)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=pd.Index(list(ages), name="age_s"))
    return table.rename_axis(index="uses so far")
