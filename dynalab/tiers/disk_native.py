"""Threads in machine code that read and write files: the GIL is taken once a batch, never for a block.

A Python thread that calls ``os.preadv`` must take the GIL after every block, and waits up to 5 ms for it whenever
another thread computes; at 64 KiB blocks that is most of the time. Here the loop of a worker is compiled, releases the
GIL when the thread starts, and takes it back when the pool is closed. Batches come to it through a ring of descriptors
in plain memory:

* the caller fills one descriptor per *segment* (a run of blocks that lie side by side in the file: one vectored call)
  and posts the semaphore `QUEUE` for each of them;
* a worker waits for the semaphore, takes the next ticket, copies its descriptor out, frees it, moves the bytes, stores
  one result per block, and counts the segment off its batch; who counts off the last one posts the batch's semaphore;
* the caller keeps the last segment to itself, then takes descriptors as the workers do, and sleeps only when there are
  none: a batch of one segment costs no switch of threads at all.

Everything is addressed by integers, and every function is compiled for exactly one signature, so that Numba finds the
machine code in its cache. Semaphores, not condition variables: ``sem_wait`` and ``sem_post`` need no system call while
nobody sleeps.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

#: Result of a block that lies, wholly or in part, behind the end of the file. Other results are 0 or an errno.
END_OF_FILE: Final = -1

#: Descriptors in the ring, and 64-bit words in each (two cache lines, so that neighbours do not share one).
RING: Final = 1024
WORDS: Final = 16
_FILLED, _FD, _BUFFERS, _COUNT, _OFFSET, _WRITE, _RESULTS, _BATCH = (8 * word for word in range(8))

#: Byte offsets in the pool's control words: each counter and each semaphore (32 bytes in glibc) has lines of its own.
HEAD, TAIL, STOP, QUEUE, TURN, CONTROL_BYTES = 0, 128, 256, 384, 512, 640
#: Byte offsets in a batch's control words: segments that are not done, and the semaphore of the end.
LEFT, DONE, BATCH_BYTES = 0, 64, 128

#: Linux takes at most this many buffers in one vectored call (UIO_MAXIOV).
MAX_BUFFERS: Final = 1024
_EINTR: Final = errno.EINTR

_I32, _I64 = types.int32, types.int64
_preadv = types.ExternalFunction("preadv64", _I64(_I32, _I64, _I32, _I64))
_pwritev = types.ExternalFunction("pwritev64", _I64(_I32, _I64, _I32, _I64))
_pwrite = types.ExternalFunction("pwrite64", _I64(_I32, _I64, _I64, _I64))
_errno_location = types.ExternalFunction("__errno_location", _I64())
_sem_init = types.ExternalFunction("sem_init", _I32(_I64, _I32, _I32))
_sem_wait = types.ExternalFunction("sem_wait", _I32(_I64))
_sem_trywait = types.ExternalFunction("sem_trywait", _I32(_I64))
_sem_post = types.ExternalFunction("sem_post", _I32(_I64))
_sched_yield = types.ExternalFunction("sched_yield", _I32())


def _pointer(builder: Any, address: Any, bits: int = 64) -> Any:
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


@intrinsic
def _load(typing: Any, address: Any) -> Any:
    """Read the 64-bit word at an address."""
    return _I64(_I64), lambda context, builder, signature, args: builder.load(_pointer(builder, args[0]))


@intrinsic
def _load_int(typing: Any, address: Any) -> Any:
    """Read the C int at an address."""
    return _I32(_I64), lambda context, builder, signature, args: builder.load(_pointer(builder, args[0], 32))


@intrinsic
def _store(typing: Any, address: Any, value: Any) -> Any:
    """Write the 64-bit word at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0]))
        return context.get_dummy_value()

    return types.void(_I64, _I64), generate


@intrinsic
def _add(typing: Any, address: Any, value: Any) -> Any:
    """Add to the 64-bit word at an address, atomically and in one order for all threads; return what it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], "seq_cst")

    return _I64(_I64, _I64), generate


@njit(_I64(_I64), cache=True)
def _wait(semaphore):
    """Wait for a semaphore; a signal (EINTR) is no post."""
    while _sem_wait(semaphore) != 0:
        pass
    return 0


@njit(_I64(_I64, _I64, _I64, _I64, _I64, _I64), cache=True)
def _move(fd, buffers, count, offset, write, results):
    """Move `count` buffers to or from consecutive bytes of a file; store one result for each.

    Short reads and writes go on where they stopped. An error of a call that covers several buffers says nothing about
    which of them is to blame: from there on they are moved one by one.
    """
    width, done = count, 0
    while done < count:
        here = buffers + 16 * done
        together = min(width, count - done)
        moved = _pwritev(fd, here, together, offset) if write != 0 else _preadv(fd, here, together, offset)
        if moved > 0:
            offset += moved
            while done < count and moved >= _load(here + 8):
                moved -= _load(here + 8)
                _store(results + 8 * done, 0)
                done += 1
                here += 16
            if moved > 0:
                _store(here, _load(here) + moved)
                _store(here + 8, _load(here + 8) - moved)
            continue
        error = _I64(END_OF_FILE)
        if moved < 0:
            error = _I64(_load_int(_errno_location()))
            if error == _EINTR:
                continue
        if together > 1:
            width = 1
            continue
        _store(results + 8 * done, error)
        offset += _load(here + 8)
        done += 1
    return 0


@njit(_I64(_I64, _I64), cache=True)
def _serve(control, ring):
    """Take the next descriptor, for which the queue's semaphore was taken, and do what it says."""
    ticket = _add(control + HEAD, 1)
    here = ring + 8 * WORDS * (ticket % RING)
    fd, buffers, count = _load(here + _FD), _load(here + _BUFFERS), _load(here + _COUNT)
    offset, write, results = _load(here + _OFFSET), _load(here + _WRITE), _load(here + _RESULTS)
    batch = _load(here + _BATCH)
    _add(here + _FILLED, -1)
    _move(fd, buffers, count, offset, write, results)
    if _add(batch + LEFT, -1) == 1:
        # The batch's memory may be gone as soon as its owner wakes: glibc's sem_post touches nothing after that.
        _sem_post(batch + DONE)
    return 0


@njit(_I64(_I64), cache=True)
def prepare(control):
    """Initialise the semaphores of a pool, in zeroed control words."""
    _sem_init(control + QUEUE, 0, 0)
    _sem_init(control + TURN, 0, 1)
    return 0


@njit(_I64(_I64, _I64), cache=True, nogil=True)
def work(control, ring):
    """Serve descriptors until the pool stops: the whole life of a worker thread."""
    while True:
        _wait(control + QUEUE)
        if _add(control + STOP, 0) != 0:
            return 0
        _serve(control, ring)


@njit(_I64(_I64, _I64), cache=True, nogil=True)
def stop(control, workers):
    """Send all workers home; no batch may be under way."""
    _add(control + STOP, 1)
    for _ in range(workers):
        _sem_post(control + QUEUE)
    return 0


@njit(_I64(*[_I64] * 11), cache=True, nogil=True)
def run_batch(control, ring, batch, fd, buffers, offsets, results, count, nbytes, limit, write):
    """Move `count` blocks of `nbytes` between memory and a file, and return when all of them have a result.

    `buffers` are (address, bytes) pairs, `offsets` ascend; blocks side by side are moved together up to `limit` bytes.
    The buffers are changed on the way. `batch` are zeroed control words of this batch.
    """
    _sem_init(batch + DONE, 0, 0)
    _add(batch + LEFT, 1)  # the caller's own, so that nobody posts before the last segment is counted
    begin = 0
    while True:
        end = begin + 1
        while (
            end < count
            and end - begin < MAX_BUFFERS
            and (end - begin + 1) * nbytes <= limit
            and _load(offsets + 8 * end) == _load(offsets + 8 * end - 8) + nbytes
        ):
            end += 1
        offset = _load(offsets + 8 * begin)
        if end == count:
            _move(fd, buffers + 16 * begin, end - begin, offset, write, results + 8 * begin)
            break
        _wait(control + TURN)
        here = ring + 8 * WORDS * (_load(control + TAIL) % RING)
        if _add(here + _FILLED, 0) != 0:
            # The ring is full. Empty it, rather than wait for those who do.
            _sem_post(control + TURN)
            if _sem_trywait(control + QUEUE) == 0:
                _serve(control, ring)
            else:
                _sched_yield()
            continue
        _store(here + _FD, fd)
        _store(here + _BUFFERS, buffers + 16 * begin)
        _store(here + _COUNT, end - begin)
        _store(here + _OFFSET, offset)
        _store(here + _WRITE, write)
        _store(here + _RESULTS, results + 8 * begin)
        _store(here + _BATCH, batch)
        _add(batch + LEFT, 1)
        _add(here + _FILLED, 1)
        _store(control + TAIL, _load(control + TAIL) + 1)
        _sem_post(control + TURN)
        _sem_post(control + QUEUE)
        begin = end
    while _add(batch + LEFT, 0) > 1 and _sem_trywait(control + QUEUE) == 0:
        _serve(control, ring)
    if _add(batch + LEFT, -1) != 1:
        _wait(batch + DONE)
    return 0


@njit(_I64(*[_I64] * 7), cache=True, nogil=True)
def write_rows(fd, rows, slots, count, row_bytes, start, results):
    """Write rows of an array to their places in a file, in the calling thread; store one result for each.

    Row `s` lies at address ``rows + s * row_bytes`` and goes to offset ``start + s * row_bytes``. Rows whose numbers
    follow each other in `slots` are written together; all of them share the result of that write.
    """
    begin = 0
    while begin < count:
        first = _load(slots + 8 * begin)
        end = begin + 1
        while end < count and _load(slots + 8 * end) == first + end - begin:
            end += 1
        at, size = row_bytes * first, row_bytes * (end - begin)
        error = _I64(0)
        while size > 0:
            moved = _pwrite(fd, rows + at, size, start + at)
            if moved > 0:
                at += moved
                size -= moved
                continue
            error = _I64(END_OF_FILE) if moved == 0 else _I64(_load_int(_errno_location()))
            if error != _EINTR:
                break
            error = _I64(0)
        for row in range(begin, end):
            _store(results + 8 * row, error)
        begin = end
    return 0
