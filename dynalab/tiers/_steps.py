"""Compiled steps of the directory: each a whole call of the stack, for one call costs what 50 blocks cost.

Every step works on ``state``, the tuple of :func:`dynalab.tiers.directory.Directory`, and writes what follows from its
decisions into it: copies into the book's ``moves``, and Store and Remove events (once per hash over all tiers) into
``news``.
"""

from __future__ import annotations

import numba
import numpy as np

from dynalab.kv.admission import begin_request
from dynalab.kv.policies._layout import HIT
from dynalab.kv.tiering import pinned
from dynalab.kv.tiering.book import (
    MARKED,
    SLOT_OF,
    free_slot,
)
from dynalab.kv.tiering.rules import (
    COMPUTED,
    DEVICE,
    DISK,
    EXCLUSIVE,
    H2K,
    HOST,
    K2H,
    REFUSED,
    RESERVED,
    enter,
    jit,
    look_up,
    move,
    put,
    resident,
    sink_to_disk,
    step,
    touch,
)
from dynalab.tiers._holding import drop_block, let_go_of, publish, still_there
from dynalab.tiers._state import (
    ACTIVE,
    BOOK,
    EVENTS,
    FILTERS,
    HOLD,
    I8,
    I32,
    IDS,
    STOPPED,
    SWITCH,
    TRAFFIC,
    U64,
    as_cache,
    compiled,
)
from dynalab.tiers.identity_table import (
    HASH_OF,
    NO_PARENT,
    PARENT_OF,
    PRIORITY_OF,
    number_for,
    number_of,
    set_priority,
)

# Why a registration is refused.
TWICE, NO_NUMBER = 1, 2
# Where a prefetch has found a block that it has copied: pinned on disk and in host memory.
_FETCHED = COMPUTED + 1


@compiled(numba.int64, U64, I8)
def find(policies, state, hashes, level):
    """Set the tier that serves each of a sequence's blocks, 3 for none, changing nothing; return the prefix found."""
    cache = as_cache(policies, state)
    prefix = 0
    for i in range(hashes.size):
        x = number_of(state[IDS], hashes[i])
        level[i] = COMPUTED if x < 0 else look_up(cache, state[ACTIVE], state[SWITCH], x, False)
        prefix += prefix == i and level[i] != COMPUTED
    return prefix


@compiled(numba.int64, U64, I32, I8, I32)
def match(policies, state, hashes, ids, level, slots):
    """Give the blocks of a sequence numbers, pin its longest prefix held, and return the prefix's length."""
    cache = as_cache(policies, state)
    parent = np.int32(NO_PARENT)
    for i in range(hashes.size):
        ids[i] = number_for(cache, state[FILTERS], state[ACTIVE], state[IDS], hashes[i], parent)
        if ids[i] < 0:
            break
        parent = ids[i]
    end = pinned.match(cache, state[FILTERS], state[ACTIVE], state[SWITCH], state[HOLD], ids, 0, hashes.size, level)
    for i in range(end):
        slots[i] = state[BOOK][SLOT_OF][level[i], ids[i]]
    return end


@compiled(numba.int64, I32, I8, I32, numba.float64)
def onboard(policies, state, ids, level, slots, now):
    """Bring matched blocks to the device; return how many, or -1 where it has no room for them.

    Blocks that have been lost since they were matched, and all behind them, are let go. `slots` becomes those on the
    device.
    """
    cache = as_cache(policies, state)
    end = 0
    while end < ids.size and still_there(cache, state, level[end], ids[end], slots[end]):
        end += 1
    done = pinned.onboard(
        cache,
        state[FILTERS],
        state[ACTIVE],
        state[SWITCH],
        state[EVENTS],
        state[TRAFFIC],
        state[HOLD],
        state[BOOK],
        0,
        ids,
        0,
        end,
        level,
        state[STOPPED],
        now,
        state[IDS][PRIORITY_OF],
    )
    for i in range(end if done else 0, ids.size):
        let_go_of(cache, state, level[i], ids[i], slots[i])
    for i in range(end if done else 0):
        level[i] = DEVICE
        slots[i] = state[BOOK][SLOT_OF][DEVICE, ids[i]]
    publish(cache, state)
    return end if done else -1


@compiled(numba.boolean, I32, numba.float64)
def allocate(policies, state, slots, now):
    """Reserve room for new blocks on the device; False where there is too little, and nothing was done."""
    cache = as_cache(policies, state)
    done = pinned.allocate(
        cache,
        state[FILTERS],
        state[ACTIVE],
        state[SWITCH],
        state[EVENTS],
        state[TRAFFIC],
        state[HOLD],
        state[BOOK],
        0,
        slots.size,
        state[STOPPED].shape[1] - 1,
        slots,
        now,
        state[IDS][PRIORITY_OF],
    )
    publish(cache, state)
    return done


@compiled(numba.int64, U64, numba.uint64, numba.int64, I32, I32, numba.float64)
def register(policies, state, hashes, parent_hash, priority, slots, ids, now):
    """Register new blocks under their hashes; 0, or why nothing was done.

    `parent_hash` is 0 for the first of a sequence. Slots of blocks that the device held already become theirs.
    """
    cache = as_cache(policies, state)
    parent = np.int32(NO_PARENT)
    if parent_hash != 0:
        parent = number_for(cache, state[FILTERS], state[ACTIVE], state[IDS], parent_hash, parent)
    before = parent
    for i in range(hashes.size):
        ids[i] = number_for(cache, state[FILTERS], state[ACTIVE], state[IDS], hashes[i], before)
        if ids[i] < 0:
            return NO_NUMBER
        before = ids[i]
    for i in range(hashes.size):
        if state[IDS][HASH_OF][ids[i]] != hashes[i]:
            # A later block could get no number but this one's.
            return NO_NUMBER
    seen = 0
    while seen < ids.size and state[BOOK][MARKED][ids[seen]] == 0:
        state[BOOK][MARKED][ids[seen]] = 1
        seen += 1
    for i in range(seen):
        state[BOOK][MARKED][ids[i]] = 0
    if seen < ids.size:
        return TWICE
    for i in range(ids.size):
        set_priority(cache, state[ACTIVE], state[IDS], ids[i], priority)
    if ids.size and parent_hash == 0:
        # The sequence was matched, which has told who comes before whom.
        parent = state[IDS][PARENT_OF][ids[0]]
    pinned.register(
        cache,
        state[FILTERS],
        state[ACTIVE],
        state[SWITCH],
        state[EVENTS],
        state[TRAFFIC],
        state[HOLD],
        state[BOOK],
        0,
        ids,
        0,
        ids.size,
        slots,
        state[STOPPED],
        parent,
        now,
        state[IDS][PRIORITY_OF],
    )
    publish(cache, state)
    return 0


@compiled(numba.void, I32, I8, I32)
def let_go(policies, state, ids, level, slots):
    """Take the pins of matched or registered blocks back."""
    cache = as_cache(policies, state)
    for i in range(ids.size):
        let_go_of(cache, state, level[i], ids[i], slots[i])


@compiled(numba.void, I32)
def give_back(policies, state, slots):
    """Give reserved room back that was never registered."""
    for i in range(slots.size):
        state[HOLD][1][RESERVED, DEVICE] -= 1
        free_slot(state[BOOK], DEVICE, slots[i])


@compiled(numba.void, numba.int64, U64, I32, numba.boolean[::1])
def lose(policies, state, k, hashes, slots, lost):
    """Remove blocks from tier `k` whose bytes are not there, where those slots still are theirs; tell which."""
    cache = as_cache(policies, state)
    for i in range(hashes.size):
        x = number_of(state[IDS], hashes[i])
        if x >= 0 and still_there(cache, state, k, x, slots[i]):
            drop_block(cache, state, k, x)
            lost[i] = True
    publish(cache, state)


@compiled(numba.boolean, numba.int64, U64, I32)
def any_pinned(policies, state, k, hashes, slots):
    """Tell whether any of these blocks is in use where it lies, in such a slot of tier `k`."""
    cache = as_cache(policies, state)
    for i in range(hashes.size):
        x = number_of(state[IDS], hashes[i])
        if x >= 0 and still_there(cache, state, k, x, slots[i]) and state[HOLD][0][k, x] > 0:
            return True
    return False


@compiled(numba.int64, U64, I8, numba.float64)
def prefetch(policies, state, hashes, level, now):
    """Note copies of a sequence's blocks from disk to host memory; return how many.

    Up to the first block that no tier holds, or that could take only the place of one in use or of this sequence. The
    disk keeps what it has: who gives up waiting has lost nothing.

    Parameters
    ----------
    level : int8, shape (>= len(hashes),)
        Scratch.
    """
    cache = as_cache(policies, state)
    pins = state[HOLD]
    end = 0
    while end < hashes.size and state[ACTIVE][HOST]:
        x = number_of(state[IDS], hashes[end])
        level[end] = COMPUTED if x < 0 else look_up(cache, state[ACTIVE], state[SWITCH], x, False)
        if level[end] == COMPUTED:
            break
        # No block of the sequence must leave for another one.
        pinned.pin(pins, level[end], x)
        end += 1
    copied = 0
    for i in range(end):
        x = number_of(state[IDS], hashes[i])
        if level[i] == DISK and not resident(cache, state[ACTIVE], HOST, x):
            if not _fetch(cache, state, x, now):
                break
            pinned.pin(pins, HOST, x)
            level[i] = _FETCHED
            copied += 1
    for i in range(end):
        x = number_of(state[IDS], hashes[i])
        if level[i] == _FETCHED:
            pinned.unpin(pins, HOST, x)
            pinned.unpin(pins, DISK, x)
        else:
            pinned.unpin(pins, level[i], x)
    publish(cache, state)
    return copied


@jit
def _fetch(cache, state, x, now):
    """Bring block `x` from disk to host memory; False where there is no room for it."""
    victim = put(cache, state[EVENTS], state[HOLD], state[BOOK], HOST, x)
    if victim == REFUSED:
        return False
    if victim >= 0 and state[SWITCH][EXCLUSIVE]:
        begin_request(state[FILTERS][1][DISK])
        sink_to_disk(
            cache,
            state[FILTERS],
            state[ACTIVE],
            state[EVENTS],
            state[TRAFFIC],
            state[HOLD],
            state[BOOK],
            0,
            victim,
            H2K,
            now,
            state[IDS][PRIORITY_OF],
        )
    move(state[TRAFFIC], state[BOOK], 0, K2H, x)
    return True


@compiled(numba.int64, U64)
def use(policies, state, hashes):
    """Tell the policies that blocks are used, up to the first that no tier holds; return how many."""
    cache = as_cache(policies, state)
    for i in range(hashes.size):
        x = number_of(state[IDS], hashes[i])
        level = COMPUTED if x < 0 else look_up(cache, state[ACTIVE], state[SWITCH], x, False)
        if level == COMPUTED:
            return i
        if state[SWITCH][EXCLUSIVE]:
            step(cache, HIT, level, x)
        else:
            touch(cache, state[ACTIVE], state[SWITCH], x, level)
    return hashes.size


@compiled(numba.int64, U64, U64, I32, I32)
def restore(policies, state, hashes, parents, priority, slots):
    """Enter the blocks that a disk held when it was opened; the disk's free slots are in front of `slots` in its ring.

    Returns
    -------
    int
        How many were entered: no more than there are numbers and room for.
    """
    cache = as_cache(policies, state)
    for i in range(hashes.size):
        parent = np.int32(NO_PARENT)
        if parents[i] != 0:
            parent = number_for(cache, state[FILTERS], state[ACTIVE], state[IDS], parents[i], parent)
        x = number_for(cache, state[FILTERS], state[ACTIVE], state[IDS], hashes[i], parent)
        if x < 0:
            return i
        set_priority(cache, state[ACTIVE], state[IDS], x, priority[i])
        enter(cache, state[EVENTS], state[BOOK], DISK, x)
        state[BOOK][SLOT_OF][DISK, x] = slots[i]
        publish(cache, state)
    return hashes.size


@compiled(numba.void, numba.int64)
def clear(policies, state, k):
    """Remove every block that is not in use from tier `k`."""
    cache = as_cache(policies, state)
    for x in range(state[STOPPED].shape[1] - 1):
        if resident(cache, state[ACTIVE], k, x) and state[HOLD][0][k, x] == 0:
            drop_block(cache, state, k, x)
    publish(cache, state)
