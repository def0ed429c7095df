"""The memory behind the decisions: which slot of a tier holds which block, and the copies that follow.

A book is a tuple of arrays that compiled functions write while they decide:

``slot_of`` : int32, shape (3, n_ids)
    Slot of each block per tier. A block that left keeps its entry until it enters again, for its bytes may still be
    on their way out.
``ring`` : int32, shape (3, n_slots); ``ring_state`` : int64, shape (3, 2)
    Free slots per tier, a queue (head, count): the slot that has been free for longest is used first, so that copies
    out of it have most probably ended.
``moves`` : int32, shape (n, 4)
    Copies in an order in which they may be carried out one after the other: edge, block, source slot, target slot.
``changed`` : int32, shape (n,); ``marked`` : uint8, shape (n_ids,)
    Blocks that entered or left any tier, once each.
``counts`` : int64, shape (2,)
    Used length of ``moves`` and of ``changed``.
"""

from __future__ import annotations

import numba

from dynalab.kv.policies._layout import jit

# Entries of a book.
SLOT_OF, RING, RING_STATE, MOVES, CHANGED, MARKED, COUNTS = range(7)
# Columns of ``ring_state`` and of ``moves``, entries of ``counts``.
HEAD, FREE = 0, 1
MOVE_EDGE, MOVE_BLOCK, MOVE_SOURCE, MOVE_TARGET = range(4)
N_MOVES, N_CHANGED = 0, 1

#: Source and target tier of each edge, in the order of ``rules.EDGES``; tiers are 0 device, 1 host, 2 disk.
ENDS = ((0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0))

_I32 = numba.int32[::1]
_I32_2D = numba.int32[:, ::1]
#: Numba type of a book.
BOOK_TYPE = numba.types.Tuple(
    (_I32_2D, _I32_2D, numba.int64[:, ::1], _I32_2D, _I32, numba.uint8[::1], numba.int64[::1])
)


@jit
def take_slot(book, k):
    """Take the slot of tier `k` that has been free for longest; there must be one."""
    state = book[RING_STATE]
    slot = book[RING][k, state[k, HEAD]]
    state[k, HEAD] = (state[k, HEAD] + 1) % book[RING].shape[1]
    state[k, FREE] -= 1
    return slot


@jit
def free_slot(book, k, slot):
    """Give a slot of tier `k` back."""
    state = book[RING_STATE]
    book[RING][k, (state[k, HEAD] + state[k, FREE]) % book[RING].shape[1]] = slot
    state[k, FREE] += 1


@jit
def mark_changed(book, x):
    """Remember that block `x` entered or left a tier."""
    if book[MARKED][x] == 0:
        book[MARKED][x] = 1
        book[CHANGED][book[COUNTS][N_CHANGED]] = x
        book[COUNTS][N_CHANGED] += 1


@jit
def note_entered(book, k, x):
    """Give block `x`, which enters tier `k`, a slot."""
    book[SLOT_OF][k, x] = take_slot(book, k)
    mark_changed(book, x)


@jit
def note_left(book, k, x):
    """Free the slot of block `x`, which leaves tier `k`."""
    free_slot(book, k, book[SLOT_OF][k, x])
    mark_changed(book, x)


@jit
def note_move(book, edge, x):
    """Write down that the bytes of block `x` take the path `edge`."""
    i = book[COUNTS][N_MOVES]
    source = 0 if edge in (0, 4) else (1 if edge in (1, 2) else 2)
    target = 0 if edge in (1, 5) else (1 if edge in (0, 3) else 2)
    book[MOVES][i, MOVE_EDGE] = edge
    book[MOVES][i, MOVE_BLOCK] = x
    book[MOVES][i, MOVE_SOURCE] = book[SLOT_OF][source, x]
    book[MOVES][i, MOVE_TARGET] = book[SLOT_OF][target, x]
    book[COUNTS][N_MOVES] = i + 1
