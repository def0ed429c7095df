"""Group copies into transfers that may run side by side, and find what each must wait for.

Copies come in an order in which they could be carried out one after the other. Run side by side, a copy must still wait
for the last one that wrote its source, and for all that wrote or read its target: what a scoreboard does for the
registers of a processor. Copies on one path are put into one group while no group comes to wait, through others, for
itself.
"""

from __future__ import annotations

import numba
import numpy as np

from dynalab.kv.tiering.book import MOVE_EDGE, MOVE_SOURCE, MOVE_TARGET
from dynalab.kv.tiering.rules import EDGES

_WINDOW = 64  # groups whose relations are kept, one bit each
#: Most blocks of a group: later groups can start before a long request has been moved whole.
GROUP_BLOCKS = 128
N_EDGES = len(EDGES)


@numba.njit(
    numba.types.UniTuple(numba.int64, 2)(
        numba.int32[:, ::1],
        numba.int64[:, ::1],
        numba.int64[:, ::1],
        numba.int64,
        numba.int64,
        numba.int32[::1],
        numba.int64[:, ::1],
    ),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def plan(moves, last_write, last_read, base, floor, group, waits):
    """Assign every copy to a group.

    Parameters
    ----------
    moves : int32, shape (n, 4)
        Edge, block, source slot, target slot, in order.
    last_write : int64, shape (3, n_slots)
        Ticket of the last group that writes each slot of each tier; brought up to date.
    last_read : int64, shape (6, n_slots)
        Ticket of the last group that reads each slot, per edge; brought up to date.
    base : int
        Ticket of the first group is ``base + 1``.
    floor : int
        Tickets up to this one are done.
    group : int32, shape (n,)
        Set to the group of each copy, from 0.
    waits : int64, shape (5 n, 2)
        Set to pairs (group, ticket that it waits for), repetitions included.

    Returns
    -------
    n_groups, n_waits : int
    """
    sources = (0, 1, 1, 2, 0, 2)
    targets = (1, 0, 2, 1, 2, 0)
    first_reader = (0, 1, 3)
    second_reader = (4, 2, 5)
    reach = np.zeros(_WINDOW, np.uint64)
    size = np.zeros(_WINDOW, np.int64)
    current = np.full(N_EDGES, -1, np.int64)
    tickets = np.zeros(5, np.int64)
    one = np.uint64(1)
    window = 0
    n_groups = 0
    n_waits = 0
    for i in range(moves.shape[0]):
        edge = moves[i, MOVE_EDGE]
        source = moves[i, MOVE_SOURCE]
        target = moves[i, MOVE_TARGET]
        to = targets[edge]
        tickets[0] = last_write[sources[edge], source]
        tickets[1] = last_write[to, target]
        tickets[2] = last_read[first_reader[to], target]
        tickets[3] = last_read[second_reader[to], target]
        # Only the last reader is kept per edge, so a reader waits for the one before it.
        tickets[4] = last_read[edge, source]
        g = current[edge]
        if g >= 0:
            closed = size[g - window] >= GROUP_BLOCKS
            for j in range(5):
                h = tickets[j] - base - 1
                if h >= window and (h == g or (reach[h - window] >> np.uint64(g - window)) & one):
                    # A second read of a slot by one group is no conflict.
                    closed = closed or h != g or j != 4
            if closed:
                g = -1
        if g < 0:
            if n_groups - window == _WINDOW:
                window = n_groups
                current[:] = -1
                reach[:] = 0
                size[:] = 0
            g = n_groups
            current[edge] = g
            n_groups += 1
        here = g - window
        size[here] += 1
        for j in range(5):
            h = tickets[j] - base - 1
            if tickets[j] <= floor or h == g:
                continue
            if h >= window:
                bit = one << np.uint64(h - window)
                if reach[here] & bit:
                    continue
                reach[here] |= bit | reach[h - window]
                for q in range(n_groups - window):
                    if (reach[q] >> np.uint64(here)) & one:
                        reach[q] |= reach[here]
            waits[n_waits, 0] = g
            waits[n_waits, 1] = tickets[j]
            n_waits += 1
        group[i] = g
        last_read[edge, source] = base + 1 + g
        last_write[to, target] = base + 1 + g
    return n_groups, n_waits
