"""The jitted loop that drives a stack of device, host and disk with metadata alone.

Each request passes three stages, as it does in a KV block manager: *look up* the level that serves each block, *touch*
the blocks found, then *admit* what has to enter a tier. With ``interleaved`` the stages run block by block instead,
which is the textbook model of a cache and what single-cache hit ratios assume.
"""

from __future__ import annotations

import warnings

import numba

from dynalab.kv.admission import admit, begin_request, observe
from dynalab.kv.keyed import keyed
from dynalab.kv.policies._layout import ACCESS, HIT, REMOVE, STATE
from dynalab.kv.policies._registry import STEP_TYPE

N_TIERS = 3
DEVICE, HOST, DISK, COMPUTED = 0, 1, 2, 3

#: Paths between tiers, in the order of the traffic counters.
EDGES = (
    "device_to_host",
    "host_to_device",
    "host_to_disk",
    "disk_to_host",
    "device_to_disk",
    "disk_to_device",
)
_D2H, _H2D, _H2K, _K2H, _D2K, _K2D = range(6)

# Switches, as positions in ``switch``.
EXCLUSIVE, ANY_MATCH, INTERLEAVED, TOUCH_ALL, OFFER_ALWAYS, AROUND_HOST = range(6)
N_SWITCHES = 6
# Event counters per tier.
INSERTED, EVICTED, REMOVED, REJECTED = range(4)
N_EVENTS = 4

_jit = numba.njit(nogil=True, error_model="numpy", forceinline=True, _nrt=False)
_NODES = numba.types.UniTuple(numba.int32[:, ::1], N_TIERS)
_INTS = numba.types.UniTuple(numba.int64[::1], N_TIERS)
_FLOATS = numba.types.UniTuple(numba.float64[::1], N_TIERS)


# The tuples below hold one entry per tier. They are indexed by literals, for a tuple indexed by a variable costs Numba
# a copy of the whole tuple: 50 times the time of everything else here.


@_jit
def _resident(cache, active, k, x):
    if not active[k]:
        return False
    if k == DEVICE:
        return cache[1][0][x, STATE] > 0
    if k == HOST:
        return cache[1][1][x, STATE] > 0
    return cache[1][2][x, STATE] > 0


@_jit
def _step(cache, op, k, x):
    if k == DEVICE:
        return cache[0][0](op, cache[1][0], cache[2][0], cache[3][0], x)
    if k == HOST:
        return cache[0][1](op, cache[1][1], cache[2][1], cache[3][1], x)
    return cache[0][2](op, cache[1][2], cache[2][2], cache[3][2], x)


@_jit
def _put(cache, events, k, x):
    """Enter block `x`, which tier `k` lacks, and return the block that had to leave, or -1."""
    victim = _step(cache, ACCESS, k, x)
    events[k, INSERTED] += 1
    events[k, EVICTED] += victim >= 0
    return victim


@_jit
def _wanted(filters, events, k, x, now, priority):
    """Ask the filter of tier `k` whether block `x`, which it lacks, may enter."""
    if k == HOST:
        wanted = admit(filters[0][1], filters[1][1], x, now, False, priority[x])
    else:
        wanted = admit(filters[0][2], filters[1][2], x, now, False, priority[x])
    events[k, REJECTED] += not wanted
    return wanted


@_jit
def _demote(cache, filters, active, events, traffic, w, x, now, priority):
    """Exclusive stack: let block `x`, evicted from the device, sink as far as it is wanted."""
    # Victims belong to any request: one that is refused says nothing about the next.
    begin_request(filters[1][1])
    begin_request(filters[1][2])
    from_host = False
    if active[HOST]:
        if not _wanted(filters, events, HOST, x, now, priority):
            return
        victim = _put(cache, events, HOST, x)
        traffic[w, _D2H] += 1
        if victim < 0:
            return
        x = victim
        from_host = True
    if active[DISK] and _wanted(filters, events, DISK, x, now, priority):
        _put(cache, events, DISK, x)
        traffic[w, _H2K if from_host else _D2K] += 1


@_jit
def _write_through(cache, filters, active, switch, events, traffic, w, x, now, priority):
    """Inclusive stack: offer block `x`, held by the device, to the tiers below that lack it."""
    entered_host = False
    if active[HOST] and not _resident(cache, active, HOST, x) and _wanted(filters, events, HOST, x, now, priority):
        _put(cache, events, HOST, x)
        traffic[w, _D2H] += 1
        entered_host = True
    if not active[DISK] or _resident(cache, active, DISK, x):
        return
    if switch[AROUND_HOST] or not active[HOST]:
        if _wanted(filters, events, DISK, x, now, priority):
            _put(cache, events, DISK, x)
            traffic[w, _D2K] += 1
    elif (entered_host or (switch[OFFER_ALWAYS] and _resident(cache, active, HOST, x))) and _wanted(
        filters, events, DISK, x, now, priority
    ):
        # Registration in host memory is what offers a block to the disk.
        _put(cache, events, DISK, x)
        traffic[w, _H2K] += 1


@_jit
def _onboard(cache, active, switch, events, traffic, w, x, level):
    """Count the way of block `x` up to the device; a copy staged through host memory stays there."""
    if level == HOST:
        traffic[w, _H2D] += 1
    elif switch[AROUND_HOST] or not active[HOST]:
        traffic[w, _K2D] += 1
    else:
        traffic[w, _K2H] += 1
        traffic[w, _H2D] += 1
        if not switch[EXCLUSIVE] and not _resident(cache, active, HOST, x):
            _put(cache, events, HOST, x)


@_jit
def _look_up(cache, active, switch, x, broken):
    """Return the tier that serves block `x`; nothing is served beyond the first block that must be computed."""
    if broken and not switch[ANY_MATCH]:
        return COMPUTED
    for k in range(N_TIERS):
        if _resident(cache, active, k, x):
            return k
    return COMPUTED


@_jit
def _drop_below(cache, active, events, x):
    """Exclusive stack: remove any copy of block `x` from the tiers below the device."""
    for k in range(HOST, N_TIERS):
        if _resident(cache, active, k, x):
            _step(cache, REMOVE, k, x)
            events[k, REMOVED] += 1


@_jit
def _touch(cache, active, switch, events, traffic, w, x, level):
    """Tell the tiers that block `x` is used."""
    if switch[EXCLUSIVE]:
        if _resident(cache, active, DEVICE, x):
            _step(cache, HIT, DEVICE, x)
            return
        # The block moves up (or is computed anew): no copy stays below.
        _drop_below(cache, active, events, x)
        if level != COMPUTED:
            _onboard(cache, active, switch, events, traffic, w, x, level)
        return
    for k in range(N_TIERS):
        # A block computed although the device holds it (its prefix was broken) is found again when it is registered.
        used = k == level or (level == COMPUTED and k == DEVICE)
        if (used or switch[TOUCH_ALL]) and _resident(cache, active, k, x):
            _step(cache, HIT, k, x)


@_jit
def _admit(cache, filters, active, switch, events, traffic, w, x, level, now, priority):
    """Bring block `x` to the device, and offer it to the tiers below."""
    held = level == DEVICE or _resident(cache, active, DEVICE, x)
    if switch[EXCLUSIVE]:
        if held:
            return
        # Blocks of this very request may have pushed it down since the touch stage; two copies would break the counts.
        _drop_below(cache, active, events, x)
        sinking = x
        if active[DEVICE]:
            sinking = _put(cache, events, DEVICE, x)
        if sinking >= 0:
            _demote(cache, filters, active, events, traffic, w, sinking, now, priority)
        return
    if level in (HOST, DISK):
        _onboard(cache, active, switch, events, traffic, w, x, level)
    if active[DEVICE] and not held:
        _put(cache, events, DEVICE, x)
    if not held or switch[OFFER_ALWAYS]:
        _write_through(cache, filters, active, switch, events, traffic, w, x, now, priority)


_SIGNATURE = numba.void(
    STEP_TYPE,
    STEP_TYPE,
    STEP_TYPE,
    numba.types.Tuple((_NODES, _INTS, _INTS)),
    numba.types.Tuple((_INTS, _FLOATS)),
    numba.boolean[::1],
    numba.boolean[::1],
    numba.int32[::1],
    numba.int64[::1],
    numba.float64[::1],
    numba.int64[::1],
    numba.int64[::1],
    numba.int8[::1],
    numba.int64[:, ::1],
    numba.int64[:, ::1],
)


def _drive_tiers(
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
                level[i] = _look_up(cache, active, switch, ids[i], broken)
                broken = broken or level[i] == COMPUTED
            for i in range(begin, end):
                observe(filters[0][1], filters[1][1], ids[i])
                observe(filters[0][2], filters[1][2], ids[i])
                _touch(cache, active, switch, events, traffic, w, ids[i], level[i])
            for i in range(begin, end):
                _admit(cache, filters, active, switch, events, traffic, w, ids[i], level[i], now, priority)


with warnings.catch_warnings():
    # Functions as values are an experimental feature of Numba, and it says so once per compilation.
    warnings.simplefilter("ignore", numba.NumbaExperimentalFeatureWarning)
    drive_tiers = numba.njit(_SIGNATURE, cache=True, nogil=True, error_model="numpy", _nrt=False)(keyed(_drive_tiers))
