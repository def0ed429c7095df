"""Small numbers for sequence hashes: the policies' arrays have one row per number.

A number is given to a hash when it is first seen, held by a tier or not (ghost lists and frequency filters remember
blocks that are gone). When none is left, the number of the block that has been held nowhere for longest is taken; the
policies and filters forget that block first. A block stays known while blocks that continue it are, so a sequence that
is gone is forgotten from its last block on.

``ids`` is a tuple of arrays:

``keys`` : uint64, ``values`` : int32, shape (2**m,)
    Hash table with linear probing; a value of -1 is an empty place.
``hash_of`` : uint64; ``parent_of``, ``position``, ``children`` : int32; ``priority`` : int64, shape (n_ids + 1,)
    Facts about each number. The last one stands for nobody.
``before``, ``behind`` : int32, shape (n_ids + 2,)
    A ring of the numbers to take: of known blocks that no tier holds and no known block continues, in the order in
    which that came to be; row ``n_ids + 1`` is its end.
``held`` : uint8, shape (n_ids + 1,)
    Whether any tier holds the block, as was last published.
``used`` : int64, shape (1,)
    Numbers given out so far.
"""

from __future__ import annotations

import numba
import numpy as np

from dynalab.kv.admission import forget
from dynalab.kv.policies._layout import NARROW_COLUMNS, PARENT, POSITION, PRIORITY, REMOVE
from dynalab.kv.tiering.rules import DEVICE, DISK, HOST, N_TIERS, jit, step

KEYS, VALUES, HASH_OF, PARENT_OF, POSITION_OF, CHILDREN, PRIORITY_OF, BEFORE, BEHIND, HELD, USED = range(11)
NO_PARENT = -1
_MIX = np.uint64(0x9E3779B97F4A7C15)

_I32 = numba.int32[::1]
_U64 = numba.uint64[::1]
#: Numba type of ``ids``.
IDS_TYPE = numba.types.Tuple(
    (_U64, _I32, _U64, _I32, _I32, _I32, numba.int64[::1], _I32, _I32, numba.uint8[::1], numba.int64[::1])
)


def identity_table(n_ids: int) -> tuple[np.ndarray, ...]:
    """Return the arrays for `n_ids` numbers, all free."""
    places = 1 << max(3, (2 * n_ids - 1).bit_length())
    rows = n_ids + 1
    ring = [np.full(rows + 1, rows, np.int32) for _ in range(2)]
    return (
        np.zeros(places, np.uint64),
        np.full(places, -1, np.int32),
        np.zeros(rows, np.uint64),
        np.full(rows, NO_PARENT, np.int32),
        np.zeros(rows, np.int32),
        np.zeros(rows, np.int32),
        np.zeros(rows, np.int64),
        *ring,
        np.zeros(rows, np.uint8),
        np.zeros(1, np.int64),
    )


@jit
def _home(ids, key):
    return np.int64((key * _MIX) >> np.uint64(32)) & (ids[KEYS].size - 1)


@jit
def number_of(ids, key):
    """Return the number of hash `key`, -1 if it has none."""
    i = _home(ids, key)
    while ids[VALUES][i] >= 0:
        if ids[KEYS][i] == key:
            return ids[VALUES][i]
        i = (i + 1) & (ids[KEYS].size - 1)
    return np.int32(-1)


@jit
def _take_out(ids, key):
    """Take `key` out of the hash table, and close the gap."""
    mask = ids[KEYS].size - 1
    gap = _home(ids, key)
    while ids[KEYS][gap] != key or ids[VALUES][gap] < 0:
        gap = (gap + 1) & mask
    i = gap
    while True:
        i = (i + 1) & mask
        if ids[VALUES][i] < 0:
            break
        # An entry may fill the gap unless its home lies behind the gap.
        if ((i - _home(ids, ids[KEYS][i])) & mask) >= ((i - gap) & mask):
            ids[KEYS][gap] = ids[KEYS][i]
            ids[VALUES][gap] = ids[VALUES][i]
            gap = i
    ids[VALUES][gap] = -1


@jit
def _leave_ring(ids, x):
    before = ids[BEFORE][x]
    behind = ids[BEHIND][x]
    ids[BEHIND][before] = behind
    ids[BEFORE][behind] = before


@jit
def _enter_ring(ids, x, behind):
    """Put number `x` into the ring, before number `behind`."""
    before = ids[BEFORE][behind]
    ids[BEHIND][before] = x
    ids[BEFORE][x] = before
    ids[BEHIND][x] = behind
    ids[BEFORE][behind] = x


@jit
def _end(ids):
    return np.int32(ids[BEFORE].size - 1)


@jit
def set_held(ids, x, held):
    """Note that some tier holds block `x` from now on, or none does any more."""
    ids[HELD][x] = held
    if ids[CHILDREN][x] == 0:
        if held:
            _leave_ring(ids, x)
        else:
            _enter_ring(ids, x, _end(ids))


@jit
def _recycle(cache, filters, active, ids, keep):
    """Free the number, other than `keep`, that is the first in the ring; -1 if there is none."""
    x = ids[BEHIND][_end(ids)]
    if x == keep:
        x = ids[BEHIND][x]
    if x == _end(ids):
        return np.int32(-1)
    _leave_ring(ids, x)
    _take_out(ids, ids[HASH_OF][x])
    parent = ids[PARENT_OF][x]
    if parent >= 0:
        ids[CHILDREN][parent] -= 1
        if ids[CHILDREN][parent] == 0 and not ids[HELD][parent]:
            # It has been gone for as long as its continuation: it is the next to go.
            _enter_ring(ids, parent, ids[BEHIND][_end(ids)])
    for k in range(N_TIERS):
        if active[k]:
            step(cache, REMOVE, k, x)
    forget(filters[0][1], filters[1][1], x)
    forget(filters[0][2], filters[1][2], x)
    return x


@jit
def _tell_policy(f, x, parent, position, priority):
    if f.shape[1] > NARROW_COLUMNS:
        f[x, PARENT] = parent
        f[x, POSITION] = position
        f[x, PRIORITY] = priority


@jit
def _tell_policies(cache, active, ids, x):
    for k in range(N_TIERS):
        if active[k]:
            if k == DEVICE:
                f = cache[1][DEVICE]
            elif k == HOST:
                f = cache[1][HOST]
            else:
                f = cache[1][DISK]
            _tell_policy(f, x, ids[PARENT_OF][x], ids[POSITION_OF][x], ids[PRIORITY_OF][x])


@jit
def set_priority(cache, active, ids, x, priority):
    """Give block `x` a priority."""
    if ids[PRIORITY_OF][x] != priority:
        ids[PRIORITY_OF][x] = priority
        _tell_policies(cache, active, ids, x)


@jit
def number_for(cache, filters, active, ids, key, parent):
    """Return the number of hash `key`, which follows block `parent`; a new one if need be, -1 if none is left."""
    x = number_of(ids, key)
    if x >= 0:
        return x
    if ids[USED][0] < ids[HASH_OF].size - 1:
        x = np.int32(ids[USED][0])
        ids[USED][0] += 1
    else:
        x = _recycle(cache, filters, active, ids, parent)
        if x < 0:
            return x
    i = _home(ids, key)
    while ids[VALUES][i] >= 0:
        i = (i + 1) & (ids[KEYS].size - 1)
    ids[KEYS][i] = key
    ids[VALUES][i] = x
    ids[HASH_OF][x] = key
    ids[PARENT_OF][x] = parent
    ids[POSITION_OF][x] = 0 if parent < 0 else ids[POSITION_OF][parent] + 1
    ids[PRIORITY_OF][x] = 0
    if parent >= 0:
        ids[CHILDREN][parent] += 1
        if ids[CHILDREN][parent] == 1 and not ids[HELD][parent]:
            _leave_ring(ids, parent)
    _enter_ring(ids, x, _end(ids))
    _tell_policies(cache, active, ids, x)
    return x
