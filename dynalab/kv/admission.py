"""Admission filters: which blocks are worth a copy in the next tier down.

Like a policy, a filter is a state machine over flat arrays, so that replay and real tiers run the same code: ``v``
keeps one int64 per block, ``p`` the parameters and the clock (float64).
"""

from __future__ import annotations

import numba
import numpy as np

from dynalab.errors import ConfigError, unknown

#: Filters by name, with what they admit.
ADMISSIONS = {
    "all": "every block",
    "presence": "blocks that the target does not hold yet",
    "after": "blocks used at least `min_frequency` times since the trace began",
    "frequency": "KVBM's filter: a count that doubles at each query and decays by one per flush interval",
    "priority": "blocks whose priority is at least `min_priority`",
}
_KINDS = {name: number for number, name in enumerate(ADMISSIONS)}
_ALL, _PRESENCE, _AFTER, _FREQUENCY, _PRIORITY = range(5)

# Slots of ``p``.
_KIND, _MIN_FREQUENCY, _INTERVAL, _MAX_ENTRIES, _MIN_PRIORITY, _NEXT_FLUSH, _ENTRIES, _CONTIGUOUS, _STOPPED = range(9)
_SATURATED = np.int64(2**62)

_jit = numba.njit(nogil=True, error_model="numpy", _nrt=False)


@_jit
def _decay(v, p, ticks):
    """Take `ticks` from every count, and forget the blocks that reach zero."""
    entries = 0
    for i in range(v.size):
        v[i] = max(v[i] - ticks, 0)
        entries += v[i] > 0
    p[_ENTRIES] = entries


@_jit
def begin_request(p):
    """Tell the filter that the blocks of another request follow."""
    p[_STOPPED] = 0


@_jit
def has_stopped(p):
    """Tell whether the filter refuses the rest of the request (`contiguous`)."""
    return p[_STOPPED] > 0


@_jit
def resume_request(p, stopped):
    """Go on with a request: `stopped` is what :func:`has_stopped` answered when it was left."""
    p[_STOPPED] = stopped


@_jit
def forget(v, p, x):
    """Forget block `x`: its id will stand for another block."""
    if p[_KIND] == _FREQUENCY and v[x] > 0:
        p[_ENTRIES] -= 1
    v[x] = 0


@_jit
def observe(v, p, x):
    """Tell the filter that block `x` was used; only the filter "after" counts uses."""
    if p[_KIND] == _AFTER:
        v[x] += 1


@_jit
def admit(v, p, x, now, present, priority):
    """Decide whether block `x` is copied to the target, and account for the question.

    Parameters
    ----------
    v, p
        The filter's arrays.
    x : int
        Block.
    now : float
        Time of the request in seconds.
    present : bool
        Whether the target holds the block already.
    priority : int
        The block's priority.

    Returns
    -------
    bool
    """
    kind = p[_KIND]
    if kind == _ALL:
        return True
    if present:
        # Nothing to copy; KVBM asks its filters only about blocks that the target lacks.
        return False
    if kind == _PRESENCE:
        return True
    if kind == _PRIORITY:
        if priority < p[_MIN_PRIORITY]:
            p[_STOPPED] = p[_CONTIGUOUS]
        return priority >= p[_MIN_PRIORITY] and p[_STOPPED] == 0
    if kind == _AFTER:
        return v[x] >= p[_MIN_FREQUENCY]
    if now >= p[_NEXT_FLUSH]:
        ticks = np.floor((now - p[_NEXT_FLUSH]) / p[_INTERVAL]) + 1.0
        p[_NEXT_FLUSH] += ticks * p[_INTERVAL]
        _decay(v, p, np.int64(ticks))
    if v[x] == 0:
        v[x] = 1
        p[_ENTRIES] += 1
    elif v[x] < _SATURATED:
        v[x] *= 2
    admitted = v[x] >= p[_MIN_FREQUENCY]
    if p[_ENTRIES] > p[_MAX_ENTRIES]:
        while p[_ENTRIES] > p[_MAX_ENTRIES]:
            _decay(v, p, np.int64(1))
        p[_NEXT_FLUSH] = now + p[_INTERVAL]
    return admitted


class AdmissionState:
    """One filter in front of one tier.

    Parameters
    ----------
    kind : str
        One of :data:`ADMISSIONS`.
    n_blocks : int
        Block ids run from 0 to ``n_blocks - 1``.
    min_frequency : int
        For "after" and "frequency": the count that admits. KVBM's default is 2.
    flush_interval : float
        For "frequency": seconds between decays. KVBM's default is 600.
    max_entries : int
        For "frequency": tracked blocks; beyond it the filter decays at once until they fit. KVBM's default is
        1,000,000.
    min_priority : int
        For "priority".
    contiguous : bool
        For "priority": stop at the first block below the minimum and refuse all later blocks of that request, as KVBM
        does, since a prefix with a hole cannot be reused beyond the hole. Needs :meth:`begin_request`.

    Examples
    --------
    >>> filter = AdmissionState("frequency", n_blocks=10)
    >>> [filter.admit(3, now=0.0) for _ in range(2)]
    [False, True]
    """

    def __init__(
        self,
        kind: str,
        n_blocks: int,
        *,
        min_frequency: int = 2,
        flush_interval: float = 600.0,
        max_entries: int = 1_000_000,
        min_priority: int = 1,
        contiguous: bool = False,
    ) -> None:
        if kind not in _KINDS:
            raise unknown("admission", kind, _KINDS)
        if min_frequency < 1:
            raise ConfigError(f"min_frequency: {min_frequency} would admit unseen blocks; give at least 1")
        if not flush_interval > 0:
            raise ConfigError(f"flush_interval: {flush_interval} s is not a positive time")
        if max_entries < 1:
            raise ConfigError(f"max_entries: {max_entries} leaves no room to count; give at least 1")
        self.v = np.zeros(n_blocks, np.int64)
        self.p = np.array(
            [
                _KINDS[kind],
                min_frequency,
                flush_interval,
                max_entries,
                min_priority,
                flush_interval,
                0,
                contiguous,
                0,
            ],
            np.float64,
        )

    def begin_request(self) -> None:
        """Tell the filter that the blocks of another request follow."""
        begin_request(self.p)

    def observe(self, x: int) -> None:
        """Tell the filter that block `x` was used."""
        observe(self.v, self.p, x)

    def admit(self, x: int, now: float, present: bool = False, priority: int = 0) -> bool:
        """Decide whether block `x` is copied to the target at time `now` (s)."""
        return bool(admit(self.v, self.p, x, float(now), present, priority))
