"""The steps of a block manager: match, onboard, allocate, register, release.

Blocks in use are pinned per tier: what a request has matched, and what it has brought to or entered on the device,
cannot be evicted from there until it is released. Room on the device is made before anything enters it, all or nothing.

The arguments are those of :mod:`dynalab.kv.tiering.rules`; ``hold`` is never None here, and the device always active.
"""

from __future__ import annotations

from dynalab.kv.admission import begin_request, has_stopped, observe, resume_request
from dynalab.kv.policies._layout import HIT, INSERT, REMOVE
from dynalab.kv.tiering.book import SLOT_OF, free_slot, mark_changed, note_left, note_move, take_slot
from dynalab.kv.tiering.rules import (
    AROUND_HOST,
    COMPUTED,
    DEVICE,
    DISK,
    EVICTED,
    EXCLUSIVE,
    H2D,
    HOST,
    INSERTED,
    K2D,
    K2H,
    N_TIERS,
    OFFER_ALWAYS,
    PINNED,
    REFUSED,
    REMOVED,
    RESERVED,
    bring_back,
    choose_victim,
    demote,
    enter,
    evictable,
    jit,
    look_up,
    move,
    put,
    resident,
    room,
    step,
    touch,
    write_through,
)


@jit
def pin(hold, k, x):
    """Keep block `x` in tier `k`, which holds it, until :func:`unpin`."""
    hold[0][k, x] += 1
    if hold[0][k, x] == 1:
        hold[1][PINNED, k] += 1


@jit
def unpin(hold, k, x):
    """Take one use of block `x` in tier `k` back."""
    hold[0][k, x] -= 1
    if hold[0][k, x] == 0:
        hold[1][PINNED, k] -= 1


@jit
def match(cache, filters, active, switch, hold, ids, first, last, level):
    """Find the longest prefix of ``ids[first:last]`` that the tiers hold, and pin it where it lies.

    Unknown blocks have a negative id. `level` is set for the blocks found.

    Returns
    -------
    int
        End of the prefix.
    """
    begin_request(filters[1][1])
    begin_request(filters[1][2])
    end = first
    while end < last and ids[end] >= 0:
        level[end] = look_up(cache, active, switch, ids[end], False)
        if level[end] == COMPUTED:
            break
        end += 1
    for i in range(first, end):
        observe(filters[0][1], filters[1][1], ids[i])
        observe(filters[0][2], filters[1][2], ids[i])
        if not switch[EXCLUSIVE]:
            touch(cache, active, switch, ids[i], level[i])
        elif level[i] == DEVICE:
            step(cache, HIT, DEVICE, ids[i])
        pin(hold, level[i], ids[i])
    return end


@jit
def device_room(cache, hold):
    """Blocks that the device can take, evicting what is not in use."""
    return room(cache, hold, DEVICE) + evictable(cache, hold, DEVICE)


@jit
def onboard(
    cache, filters, active, switch, events, traffic, hold, book, w, ids, first, last, level, refused, now, priority
):
    """Bring the matched blocks ``ids[first:last]`` to the device; their pins move there with them.

    Parameters
    ----------
    level : int8
        Tier in which :func:`match` found and pinned each block.
    refused : uint8, shape (2, n_ids)
        For filters that stop a request at the first block that they refuse: set to whether they have, at the last
        block, for :func:`register` to go on from.

    Returns
    -------
    bool
        False where the device cannot take them all; then nothing was done.
    """
    missing = 0
    found_again = 0
    for i in range(first, last):
        if not resident(cache, active, DEVICE, ids[i]):
            missing += 1
        elif hold[0][DEVICE, ids[i]] == 0:
            found_again += 1
    if missing + found_again > device_room(cache, hold):
        return False
    for i in range(first, last):
        if level[i] != DEVICE and resident(cache, active, DEVICE, ids[i]):
            # Another request has brought it up since it was matched, and left the copy below to us.
            _follow(cache, active, switch, events, hold, book, ids[i], level[i])
            level[i] = DEVICE
        elif switch[EXCLUSIVE] and level[i] == DISK and resident(cache, active, HOST, ids[i]):
            # A prefetch has brought it nearer since.
            unpin(hold, DISK, ids[i])
            pin(hold, HOST, ids[i])
            level[i] = HOST
    if not switch[EXCLUSIVE]:
        _make_room(cache, events, hold, book, ids, first, last)
    for i in range(first, last):
        x = ids[i]
        held = resident(cache, active, DEVICE, x)
        if not held and switch[EXCLUSIVE]:
            _rise(cache, filters, active, switch, events, traffic, hold, book, w, x, level[i], now, priority)
        elif not held:
            put(cache, events, hold, book, DEVICE, x)
            _copy_up(cache, active, switch, events, traffic, hold, book, w, x)
            unpin(hold, level[i], x)
            pin(hold, DEVICE, x)
        elif level[i] != DEVICE:
            # It comes twice in one request.
            _follow(cache, active, switch, events, hold, book, x, level[i])
        if not switch[EXCLUSIVE] and (not held or switch[OFFER_ALWAYS]):
            write_through(cache, filters, active, switch, events, traffic, hold, book, w, x, now, priority)
    if last > first:
        _suspend(filters, refused, ids[last - 1])
    return True


@jit
def _follow(cache, active, switch, events, hold, book, x, level):
    """Move a pin of block `x` to the device, which holds it."""
    unpin(hold, level, x)
    pin(hold, DEVICE, x)
    if switch[EXCLUSIVE] and hold[0][level, x] == 0:
        drop(cache, events, hold, book, level, x)


@jit
def _make_room(cache, events, hold, book, ids, first, last):
    """Evict from the device for all of ``ids[first:last]`` that it lacks (what it has is pinned), before one enters.

    One by one, a policy that prefers to give up its latest blocks would name every one just entered anew.
    """
    free = room(cache, hold, DEVICE)
    n_aside = 0
    for i in range(first, last):
        if hold[0][DEVICE, ids[i]] > 0:
            continue
        free -= 1
        if free < 0:
            victim, n_aside = choose_victim(cache, hold, DEVICE, ids[i], n_aside)
            events[DEVICE, EVICTED] += 1
            if book is not None:
                note_left(book, DEVICE, victim)
    bring_back(cache, hold, DEVICE, n_aside)


@jit
def _suspend(filters, refused, x):
    """Keep with block `x` whether the filters have stopped its request there."""
    refused[0, x] = has_stopped(filters[1][1])
    refused[1, x] = has_stopped(filters[1][2])


@jit
def _copy_up(cache, active, switch, events, traffic, hold, book, w, x):
    """Inclusive stack: note the way of block `x` to the device; a copy staged through host memory stays there."""
    if resident(cache, active, HOST, x):
        # Where it was found, or where it has come since it was found on the disk.
        move(traffic, book, w, H2D, x)
    elif switch[AROUND_HOST] or not active[HOST]:
        move(traffic, book, w, K2D, x)
    elif put(cache, events, hold, book, HOST, x) != REFUSED:
        move(traffic, book, w, K2H, x)
        move(traffic, book, w, H2D, x)
    else:
        # Every host block is in use.
        _through_buffer(traffic, book, w, x)


@jit
def _through_buffer(traffic, book, w, x):
    """Note a copy that passes host memory on its way from disk to device, but does not stay there."""
    traffic[w, K2H] += 1
    traffic[w, H2D] += 1
    if book is not None:
        note_move(book, K2D, x)


@jit
def _rise(cache, filters, active, switch, events, traffic, hold, book, w, x, level, now, priority):
    """Exclusive stack: block `x` leaves its tier for the device, whose victim sinks."""
    rises_alone = hold[0][level, x] == 1
    unpin(hold, level, x)
    if rises_alone:
        step(cache, REMOVE, level, x)
        events[level, REMOVED] += 1
    if room(cache, hold, DEVICE) <= 0:
        victim, n_aside = choose_victim(cache, hold, DEVICE, x, 0)
        bring_back(cache, hold, DEVICE, n_aside)
        events[DEVICE, EVICTED] += 1
        if book is not None:
            note_left(book, DEVICE, victim)
        # The slot that `x` leaves below is freed after this: the victim must not overwrite what has yet to rise.
        demote(cache, filters, active, events, traffic, hold, book, w, victim, now, priority)
    enter(cache, events, book, DEVICE, x)
    pin(hold, DEVICE, x)
    if level == HOST:
        move(traffic, book, w, H2D, x)
    elif switch[AROUND_HOST] or not active[HOST]:
        move(traffic, book, w, K2D, x)
    else:
        _through_buffer(traffic, book, w, x)
    if rises_alone and book is not None:
        note_left(book, level, x)
    # What a prefetch has copied up lies in two tiers.
    _drop_below(cache, active, events, hold, book, x)


@jit
def allocate(cache, filters, active, switch, events, traffic, hold, book, w, n, nobody, slots, now, priority):
    """Make room for `n` blocks on the device and reserve it.

    Whose blocks they will be is not known yet: the policies are asked for victims in the name of block `nobody`.

    Parameters
    ----------
    slots : int32, shape (>= n,)
        Set to the slots taken, with a book.

    Returns
    -------
    bool
        False where there are too few free and evictable blocks; then nothing was done.
    """
    if n > device_room(cache, hold):
        return False
    n_aside = 0
    for _ in range(n - max(room(cache, hold, DEVICE), 0)):
        victim, n_aside = choose_victim(cache, hold, DEVICE, nobody, n_aside)
        events[DEVICE, EVICTED] += 1
        if book is not None:
            note_left(book, DEVICE, victim)
        if switch[EXCLUSIVE]:
            demote(cache, filters, active, events, traffic, hold, book, w, victim, now, priority)
    bring_back(cache, hold, DEVICE, n_aside)
    hold[1][RESERVED, DEVICE] += n
    if book is not None:
        for i in range(n):
            slots[i] = take_slot(book, DEVICE)
    return True


@jit
def register(
    cache,
    filters,
    active,
    switch,
    events,
    traffic,
    hold,
    book,
    w,
    ids,
    first,
    last,
    slots,
    refused,
    parent,
    now,
    priority,
):
    """Enter the blocks ``ids[first:last]``, written to reserved room of the device, and offer them to the tiers below.

    A block that the device holds already is used in place of the new one, whose room is free again.

    Parameters
    ----------
    slots : int32
        With a book: the slots of the new blocks; set to those that hold them now.
    refused : uint8, shape (2, n_ids)
        See :func:`onboard`.
    parent : int
        Block before the first, -1 for none.
    """
    resume_request(filters[1][1], parent >= 0 and refused[0, parent])
    resume_request(filters[1][2], parent >= 0 and refused[1, parent])
    for i in range(first, last):
        observe(filters[0][1], filters[1][1], ids[i])
        observe(filters[0][2], filters[1][2], ids[i])
    for i in range(first, last):
        x = ids[i]
        hold[1][RESERVED, DEVICE] -= 1
        held = resident(cache, active, DEVICE, x)
        if not switch[EXCLUSIVE]:
            touch(cache, active, switch, x, COMPUTED)
        elif held:
            step(cache, HIT, DEVICE, x)
        else:
            _drop_below(cache, active, events, hold, book, x)
        if held:
            if book is not None:
                free_slot(book, DEVICE, slots[i])
                slots[i] = book[SLOT_OF][DEVICE, x]
        else:
            step(cache, INSERT, DEVICE, x)
            events[DEVICE, INSERTED] += 1
            if book is not None:
                book[SLOT_OF][DEVICE, x] = slots[i]
                mark_changed(book, x)
        pin(hold, DEVICE, x)
        if not switch[EXCLUSIVE] and (not held or switch[OFFER_ALWAYS]):
            write_through(cache, filters, active, switch, events, traffic, hold, book, w, x, now, priority)
    if last > first:
        _suspend(filters, refused, ids[last - 1])


@jit
def _drop_below(cache, active, events, hold, book, x):
    """Exclusive stack: remove any copy of block `x` below the device that nobody uses."""
    for k in range(HOST, N_TIERS):
        if resident(cache, active, k, x) and hold[0][k, x] == 0:
            drop(cache, events, hold, book, k, x)


@jit
def drop(cache, events, hold, book, k, x):
    """Remove block `x`, which nobody uses, from tier `k`."""
    step(cache, REMOVE, k, x)
    events[k, REMOVED] += 1
    if book is not None:
        note_left(book, k, x)
