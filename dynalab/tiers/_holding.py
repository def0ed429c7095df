"""Blocks that enter, stay and leave: events, pins, and slots that stay taken when their block is gone."""

from __future__ import annotations

import numpy as np

from dynalab.kv.policies._layout import REMOVE
from dynalab.kv.tiering import pinned
from dynalab.kv.tiering.book import CHANGED, COUNTS, MARKED, N_CHANGED, SLOT_OF, free_slot, mark_changed
from dynalab.kv.tiering.rules import N_TIERS, PINNED, REMOVED, RESERVED, jit, resident, step
from dynalab.tiers._state import ACTIVE, BOOK, EVENTS, GONE, HOLD, IDS, NEWS, ORPHANS, STORE
from dynalab.tiers.identity_table import HASH_OF, HELD, PARENT_OF, set_held


@jit
def publish(cache, state):
    """Turn what entered and left the tiers into events, and keep the ring of numbers that no tier holds."""
    book, ids, news = state[BOOK], state[IDS], state[NEWS]
    for i in range(book[COUNTS][N_CHANGED]):
        x = book[CHANGED][i]
        book[MARKED][x] = 0
        held = False
        for k in range(N_TIERS):
            held = held or resident(cache, state[ACTIVE], k, x)
        if held == (ids[HELD][x] > 0):
            continue
        set_held(ids, x, held)
        n = news[3][0]
        news[0][n] = STORE if held else GONE
        news[1][n] = ids[HASH_OF][x]
        news[2][n] = ids[HASH_OF][ids[PARENT_OF][x]] if ids[PARENT_OF][x] >= 0 else np.uint64(0)
        news[3][0] = n + 1
    book[COUNTS][N_CHANGED] = 0


@jit
def still_there(cache, state, k, x, slot):
    """Tell whether tier `k` holds block `x` in this slot."""
    return resident(cache, state[ACTIVE], k, x) and state[BOOK][SLOT_OF][k, x] == slot


@jit
def let_go_of(cache, state, k, x, slot):
    """Take one pin back, be it of a block or of the slot of one that is gone."""
    if still_there(cache, state, k, x, slot):
        pinned.unpin(state[HOLD], k, x)
        return
    state[ORPHANS][k, slot] -= 1
    if state[ORPHANS][k, slot] == 0:
        state[HOLD][1][RESERVED, k] -= 1
        free_slot(state[BOOK], k, slot)


@jit
def drop_block(cache, state, k, x):
    """Remove block `x` from tier `k`; while it is in use its slot stays taken."""
    slot = state[BOOK][SLOT_OF][k, x]
    pins = state[HOLD][0][k, x]
    step(cache, REMOVE, k, x)
    state[EVENTS][k, REMOVED] += 1
    mark_changed(state[BOOK], x)
    if pins == 0:
        free_slot(state[BOOK], k, slot)
        return
    state[HOLD][0][k, x] = 0
    state[HOLD][1][PINNED, k] -= 1
    state[HOLD][1][RESERVED, k] += 1
    state[ORPHANS][k, slot] = pins
