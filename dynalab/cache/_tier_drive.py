"""The jitted loops that drive a stack of device, host and disk with metadata alone.

Each request passes three stages, as it does in a KV block manager: *look up* the level that serves each block, *touch*
the blocks found, then *admit* what has to enter a tier. With ``interleaved`` the stages run block by block instead,
which is the textbook model of a cache and what single-cache hit ratios assume. :func:`drive_pinned` goes one step
nearer to a real manager: it makes room before it enters anything, and never evicts what the request itself uses.
"""

from __future__ import annotations

import numba

from dynalab.kv.admission import begin_request, observe
from dynalab.kv.keyed import late
from dynalab.kv.policies._layout import HIT
from dynalab.kv.policies._registry import STEP_TYPE
from dynalab.kv.tiering import pinned
from dynalab.kv.tiering.rules import (
    AROUND_HOST,
    COMPUTED,
    DEVICE,
    DISK,
    EXCLUSIVE,
    FILTERS_TYPE,
    H2D,
    HOLD_TYPE,
    HOST,
    INTERLEAVED,
    K2D,
    K2H,
    N_TIERS,
    OFFER_ALWAYS,
    demote,
    drop_below,
    jit,
    look_up,
    put,
    resident,
    step,
    touch,
    write_through,
)

_NODES = numba.types.UniTuple(numba.int32[:, ::1], N_TIERS)
_INTS = numba.types.UniTuple(numba.int64[::1], N_TIERS)


@jit
def _onboard(cache, active, switch, events, traffic, w, x, level):
    """Count the way of block `x` up to the device; a copy staged through host memory stays there."""
    if level == HOST:
        traffic[w, H2D] += 1
    elif switch[AROUND_HOST] or not active[HOST]:
        traffic[w, K2D] += 1
    else:
        traffic[w, K2H] += 1
        traffic[w, H2D] += 1
        if not switch[EXCLUSIVE] and not resident(cache, active, HOST, x):
            put(cache, events, None, None, HOST, x)


@jit
def _touch(cache, active, switch, events, traffic, w, x, level):
    """Tell the tiers that block `x` is used."""
    if not switch[EXCLUSIVE]:
        touch(cache, active, switch, x, level)
    elif resident(cache, active, DEVICE, x):
        step(cache, HIT, DEVICE, x)
    else:
        # The block moves up (or is computed anew): no copy stays below.
        drop_below(cache, active, events, x)
        if level != COMPUTED:
            _onboard(cache, active, switch, events, traffic, w, x, level)


@jit
def _admit(cache, filters, active, switch, events, traffic, w, x, level, now, priority):
    """Bring block `x` to the device, and offer it to the tiers below."""
    held = level == DEVICE or resident(cache, active, DEVICE, x)
    if switch[EXCLUSIVE]:
        if held:
            return
        # Blocks of this very request may have pushed it down since the touch stage; two copies would break the counts.
        drop_below(cache, active, events, x)
        sinking = x
        if active[DEVICE]:
            sinking = put(cache, events, None, None, DEVICE, x)
        if sinking >= 0:
            demote(cache, filters, active, events, traffic, None, None, w, sinking, now, priority)
        return
    if level in (HOST, DISK):
        _onboard(cache, active, switch, events, traffic, w, x, level)
    if active[DEVICE] and not held:
        put(cache, events, None, None, DEVICE, x)
    if not held or switch[OFFER_ALWAYS]:
        write_through(cache, filters, active, switch, events, traffic, None, None, w, x, now, priority)


_TRACE = (
    numba.int32[::1],
    numba.int64[::1],
    numba.float64[::1],
    numba.int64[::1],
    numba.int64[::1],
)
_COUNTERS = (numba.int8[::1], numba.int64[:, ::1], numba.int64[:, ::1])
_STACK = (
    STEP_TYPE,
    STEP_TYPE,
    STEP_TYPE,
    numba.types.Tuple((_NODES, _INTS, _INTS)),
    FILTERS_TYPE,
    numba.boolean[::1],
    numba.boolean[::1],
)


@late(numba.void(*_STACK, *_TRACE, *_COUNTERS))
def drive_tiers(
    step_device,
    step_host,
    step_disk,
    arrays,
    filters,
    active,
    switch,
    ids,
    offsets,
    arrival,
    priority,
    window,
    level,
    events,
    traffic,
):
    """Run a trace through the stack.

    Parameters
    ----------
    step_device, step_host, step_disk
        The policies' state machines.
    arrays : tuple
        ``(f, s, t)``: the policies' arrays, one of each per tier.
    filters : tuple
        ``(v, p)``: the admission filters' arrays, one of each per tier.
    active : bool, shape (3,)
        False for a tier without capacity, which then changes nothing.
    switch : bool, shape (N_SWITCHES,)
    ids : int32, shape (n_accesses,)
    offsets : int64, shape (n_requests + 1,)
    arrival : float64, shape (n_requests,)
        Seconds.
    priority : int64, shape (n_blocks,)
    window : int64, shape (n_requests,)
        Row of `traffic` that each request counts in.
    level : int8, shape (n_accesses,)
        Set to the tier that served each access, 3 where the block had to be computed.
    events : int64, shape (3, N_EVENTS)
        Insertions, evictions, removals and rejections per tier.
    traffic : int64, shape (n_windows, 6)
        Blocks moved per window and edge.
    """
    cache = ((step_device, step_host, step_disk), arrays[0], arrays[1], arrays[2])
    for r in range(offsets.size - 1):
        first = offsets[r]
        last = offsets[r + 1]
        now = arrival[r]
        w = window[r]
        broken = False
        begin_request(filters[1][1])
        begin_request(filters[1][2])
        chunk = 1 if switch[INTERLEAVED] else max(last - first, 1)
        for begin in range(first, last, chunk):
            end = min(begin + chunk, last)
            for i in range(begin, end):
                level[i] = look_up(cache, active, switch, ids[i], broken)
                broken = broken or level[i] == COMPUTED
            for i in range(begin, end):
                observe(filters[0][1], filters[1][1], ids[i])
                observe(filters[0][2], filters[1][2], ids[i])
                _touch(cache, active, switch, events, traffic, w, ids[i], level[i])
            for i in range(begin, end):
                _admit(cache, filters, active, switch, events, traffic, w, ids[i], level[i], now, priority)


@late(numba.int64(*_STACK, *_TRACE, *_COUNTERS, HOLD_TYPE, numba.uint8[:, ::1]))
def drive_pinned(
    step_device,
    step_host,
    step_disk,
    arrays,
    filters,
    active,
    switch,
    ids,
    offsets,
    arrival,
    priority,
    window,
    level,
    events,
    traffic,
    hold,
    refused,
):
    """Run a trace through the stack with the steps of a block manager, see :mod:`dynalab.kv.tiering.pinned`.

    Parameters
    ----------
    hold : tuple
        See :mod:`dynalab.kv.tiering.rules`.
    refused : uint8, shape (2, n_blocks + 1)
    others
        Those of :func:`drive_tiers`. Block ``n_blocks`` exists in the policies' arrays and in no request.

    Returns
    -------
    int
        Requests that found no room on the device; their blocks count as computed and enter nothing.
    """
    cache = ((step_device, step_host, step_disk), arrays[0], arrays[1], arrays[2])
    nobody = refused.shape[1] - 1
    n_refused = 0
    for r in range(offsets.size - 1):
        first = offsets[r]
        last = offsets[r + 1]
        now = arrival[r]
        w = window[r]
        end = pinned.match(cache, filters, active, switch, hold, ids, first, last, level)
        if not pinned.onboard(
            cache,
            filters,
            active,
            switch,
            events,
            traffic,
            hold,
            None,
            w,
            ids,
            first,
            end,
            level,
            refused,
            now,
            priority,
        ):
            for i in range(first, end):
                pinned.unpin(hold, level[i], ids[i])
                level[i] = COMPUTED
            n_refused += 1
            continue
        held = end
        if pinned.allocate(
            cache,
            filters,
            active,
            switch,
            events,
            traffic,
            hold,
            None,
            w,
            last - end,
            nobody,
            ids,
            now,
            priority,
        ):
            parent = ids[end - 1] if end > first else -1
            pinned.register(
                cache,
                filters,
                active,
                switch,
                events,
                traffic,
                hold,
                None,
                w,
                ids,
                end,
                last,
                ids,
                refused,
                parent,
                now,
                priority,
            )
            held = last
        else:
            n_refused += 1
        for i in range(first, held):
            pinned.unpin(hold, DEVICE, ids[i])
    return n_refused
