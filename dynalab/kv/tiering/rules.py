"""The rules for one block: which tier serves it, who leaves for it, and which tiers it is offered to.

All functions take the same first arguments, and a driver is compiled for the kind of each:

``cache``
    ``(steps, f, s, t)``, each a tuple with one entry per tier: the policies' state machines and arrays.
``filters``
    ``(v, p)``, tuples with one entry per tier: the admission filters' arrays.
``active``, ``switch`` : bool arrays
    Tiers that have room at all, and the switches below.
``events`` : int64, shape (3, N_EVENTS); ``traffic`` : int64, shape (n_windows, 6)
    Counters.
``hold``
    None where blocks in use may be evicted. Else ``(pins, counts, aside)``: uses of each block per tier (int32, shape
    (3, n_ids)), pinned and reserved blocks per tier (int64, shape (2, 3)), and scratch (int32, shape (3, capacity)).
``book``
    None where no memory stands behind the decisions. Else the arrays of :mod:`dynalab.kv.tiering.book`.
"""

from __future__ import annotations

import numba

from dynalab.kv.admission import admit, begin_request
from dynalab.kv.policies._layout import ACCESS, CAPACITY, EVICT, HIT, INSERT, REMOVE, SIZE, STATE, jit
from dynalab.kv.policies._registry import STEP_TYPE
from dynalab.kv.tiering.book import note_entered, note_left, note_move

N_TIERS = 3
DEVICE, HOST, DISK, COMPUTED = 0, 1, 2, 3
#: The tiers from the top; a stack may leave out any of them.
TIERS = ("device", "host", "disk")

#: Paths between tiers, in the order of the traffic counters.
EDGES = (
    "device_to_host",
    "host_to_device",
    "host_to_disk",
    "disk_to_host",
    "device_to_disk",
    "disk_to_device",
)
D2H, H2D, H2K, K2H, D2K, K2D = range(6)

# Switches, as positions in ``switch``.
EXCLUSIVE, ANY_MATCH, INTERLEAVED, TOUCH_ALL, OFFER_ALWAYS, AROUND_HOST = range(6)
N_SWITCHES = 6
# Event counters per tier.
INSERTED, EVICTED, REMOVED, REJECTED = range(4)
N_EVENTS = 4
# Rows of the second array of ``hold``.
PINNED, RESERVED = 0, 1
# What ``put`` answers when no block left: there was room, or every block of the tier is in use.
NOBODY, REFUSED = -1, -3

_NODES = numba.types.UniTuple(numba.int32[:, ::1], N_TIERS)
_INTS = numba.types.UniTuple(numba.int64[::1], N_TIERS)
_FLOATS = numba.types.UniTuple(numba.float64[::1], N_TIERS)
#: Numba types of ``cache`` and ``filters``.
CACHE_TYPE = numba.types.Tuple((numba.types.UniTuple(STEP_TYPE, N_TIERS), _NODES, _INTS, _INTS))
FILTERS_TYPE = numba.types.Tuple((_INTS, _FLOATS))
#: Numba type of ``hold``.
HOLD_TYPE = numba.types.Tuple((numba.int32[:, ::1], numba.int64[:, ::1], numba.int32[:, ::1]))


# The tuples hold one entry per tier. They are indexed by literals, for a tuple indexed by a variable costs Numba a copy
# of the whole tuple: 50 times the time of everything else here.


@jit
def resident(cache, active, k, x):
    """Tell whether tier `k` holds block `x`."""
    if not active[k]:
        return False
    if k == DEVICE:
        return cache[1][0][x, STATE] > 0
    if k == HOST:
        return cache[1][1][x, STATE] > 0
    return cache[1][2][x, STATE] > 0


@jit
def step(cache, op, k, x):
    """Run one operation of the policy of tier `k`."""
    if k == DEVICE:
        return cache[0][0](op, cache[1][0], cache[2][0], cache[3][0], x)
    if k == HOST:
        return cache[0][1](op, cache[1][1], cache[2][1], cache[3][1], x)
    return cache[0][2](op, cache[1][2], cache[2][2], cache[3][2], x)


@jit
def _scalar(cache, k, which):
    if k == DEVICE:
        return cache[2][0][which]
    if k == HOST:
        return cache[2][1][which]
    return cache[2][2][which]


@jit
def room(cache, hold, k):
    """Blocks that tier `k` can take without evicting."""
    return _scalar(cache, k, CAPACITY) - _scalar(cache, k, SIZE) - hold[1][RESERVED, k]


@jit
def evictable(cache, hold, k):
    """Blocks of tier `k` that are not in use."""
    return _scalar(cache, k, SIZE) - hold[1][PINNED, k]


@jit
def choose_victim(cache, hold, k, x, n_aside):
    """Let the policy of tier `k` choose a victim that is not in use, for the sake of block `x`.

    A policy knows nothing of pins. A block in use that it chooses is set aside, and comes back by
    :func:`bring_back` as if it were new: a second chance.

    Returns
    -------
    victim, n_aside : int
        The block that left the policy, and how many have been set aside by now.
    """
    while True:
        victim = step(cache, EVICT, k, x)
        if hold[0][k, victim] == 0:
            return victim, n_aside
        # Its ghost would make the coming insertion look like a second use.
        step(cache, REMOVE, k, victim)
        hold[2][k, n_aside] = victim
        n_aside += 1


@jit
def bring_back(cache, hold, k, n_aside):
    """Enter the blocks that :func:`choose_victim` set aside."""
    for i in range(n_aside):
        step(cache, INSERT, k, hold[2][k, i])


@jit
def enter(cache, events, book, k, x):
    """Enter block `x` into tier `k`, which has room."""
    step(cache, INSERT, k, x)
    events[k, INSERTED] += 1
    if book is not None:
        note_entered(book, k, x)


@jit
def put(cache, events, hold, book, k, x):
    """Enter block `x`, which tier `k` lacks.

    Returns
    -------
    int
        The block that had to leave, ``NOBODY``, or ``REFUSED`` where all blocks are in use and nothing was done.
    """
    if hold is None:
        victim = step(cache, ACCESS, k, x)
        events[k, INSERTED] += 1
        events[k, EVICTED] += victim >= 0
        return victim
    victim = NOBODY
    if room(cache, hold, k) <= 0:
        if evictable(cache, hold, k) <= 0:
            return REFUSED
        victim, n_aside = choose_victim(cache, hold, k, x, 0)
        bring_back(cache, hold, k, n_aside)
        events[k, EVICTED] += 1
        if book is not None:
            note_left(book, k, victim)
    enter(cache, events, book, k, x)
    return victim


@jit
def move(traffic, book, w, edge, x):
    """Count that block `x` takes the path `edge`, and note where from and where to."""
    traffic[w, edge] += 1
    if book is not None:
        note_move(book, edge, x)


@jit
def wanted(filters, events, k, x, now, priority):
    """Ask the filter of tier `k` whether block `x`, which it lacks, may enter."""
    if k == HOST:
        answer = admit(filters[0][1], filters[1][1], x, now, False, priority[x])
    else:
        answer = admit(filters[0][2], filters[1][2], x, now, False, priority[x])
    events[k, REJECTED] += not answer
    return answer


@jit
def demote(cache, filters, active, events, traffic, hold, book, w, x, now, priority):
    """Exclusive stack: let block `x`, evicted from the device, sink as far as it is wanted."""
    # Victims belong to any request: one that is refused says nothing about the next.
    begin_request(filters[1][1])
    begin_request(filters[1][2])
    sinking = x
    edge = D2K
    entered_host = False
    if active[HOST]:
        if hold is not None and resident(cache, active, HOST, x):
            # Another user held the copy below when this block moved up.
            step(cache, HIT, HOST, x)
            return
        if not wanted(filters, events, HOST, x, now, priority):
            return
        sinking = put(cache, events, hold, book, HOST, x)
        entered_host = sinking != REFUSED
        edge = H2K
    # The victim's copy comes before the one that overwrites it.
    if sinking >= 0 and active[DISK]:
        sink_to_disk(cache, filters, active, events, traffic, hold, book, w, sinking, edge, now, priority)
    if entered_host:
        move(traffic, book, w, D2H, x)


@jit
def sink_to_disk(cache, filters, active, events, traffic, hold, book, w, x, edge, now, priority):
    """Exclusive stack: let block `x`, evicted from above, enter the disk if it is wanted there."""
    if hold is not None and resident(cache, active, DISK, x):
        step(cache, HIT, DISK, x)
    elif wanted(filters, events, DISK, x, now, priority) and put(cache, events, hold, book, DISK, x) != REFUSED:
        move(traffic, book, w, edge, x)


@jit
def write_through(cache, filters, active, switch, events, traffic, hold, book, w, x, now, priority):
    """Inclusive stack: offer block `x`, held by the device, to the tiers below that lack it."""
    entered_host = False
    if (
        active[HOST]
        and not resident(cache, active, HOST, x)
        and wanted(filters, events, HOST, x, now, priority)
        and put(cache, events, hold, book, HOST, x) != REFUSED
    ):
        move(traffic, book, w, D2H, x)
        entered_host = True
    if not active[DISK] or resident(cache, active, DISK, x):
        return
    around = switch[AROUND_HOST] or not active[HOST]
    # Registration in host memory is what offers a block to the disk.
    offered = around or entered_host or (switch[OFFER_ALWAYS] and resident(cache, active, HOST, x))
    if (
        offered
        and wanted(filters, events, DISK, x, now, priority)
        and put(cache, events, hold, book, DISK, x) != REFUSED
    ):
        move(traffic, book, w, D2K if around else H2K, x)


@jit
def look_up(cache, active, switch, x, broken):
    """Return the tier that serves block `x`; nothing is served beyond the first block that must be computed."""
    if broken and not switch[ANY_MATCH]:
        return COMPUTED
    for k in range(N_TIERS):
        if resident(cache, active, k, x):
            return k
    return COMPUTED


@jit
def touch(cache, active, switch, x, level):
    """Inclusive stack: tell the tiers that block `x`, served by `level`, is used."""
    for k in range(N_TIERS):
        # A block computed although the device holds it (its prefix was broken) is found again when it is registered.
        used = k == level or (level == COMPUTED and k == DEVICE)
        if (used or switch[TOUCH_ALL]) and resident(cache, active, k, x):
            step(cache, HIT, k, x)


@jit
def drop_below(cache, active, events, x):
    """Exclusive stack: remove any copy of block `x` from the tiers below the device."""
    for k in range(HOST, N_TIERS):
        if resident(cache, active, k, x):
            step(cache, REMOVE, k, x)
            events[k, REMOVED] += 1
