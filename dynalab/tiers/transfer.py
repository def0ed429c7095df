"""A transfer: blocks to move from one tier to another, and what became of every single one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import TierError, TransferError

if TYPE_CHECKING:
    from dynalab.tiers.engine import TransferEngine

    DoneCallback = Callable[["Transfer"], object]

# Life of a transfer. Its outcome is final before its callbacks run; it is done when they have run.
NEW: Final = 0
SUBMITTED: Final = 1
FINAL: Final = 2
DONE: Final = 3


class Transfer:
    """Blocks to move along one path, and what became of them.

    Parameters
    ----------
    path : str
        Such as "device_to_host"; names a mover of the engine.
    src, dst : int, shape (n,)
        Slots of the source and of the target tier. None is a transfer without blocks, which is a mere point in time.
    priority : int
        Higher ones move first.
    after : sequence of Transfer
        Transfers that must be done first, whatever their outcome. They must have been submitted before.
    payload : object
        Whatever the mover or the callbacks need to know.

    Attributes
    ----------
    ok : bool, shape (n,)
        True for a block that has arrived.
    errors : list of TransferError
        Why the others have not.
    """

    __slots__ = (
        "_age",
        "_callbacks",
        "_dependents",
        "_engine",
        "_event",
        "_left",
        "_next",
        "_settler",
        "_state",
        "_waits",
        "after",
        "dst",
        "errors",
        "ok",
        "path",
        "payload",
        "priority",
        "src",
    )

    def __init__(
        self,
        path: str,
        src: npt.ArrayLike,
        dst: npt.ArrayLike,
        *,
        priority: int = 0,
        after: Sequence[Transfer] = (),
        payload: object = None,
    ) -> None:
        self.path = path
        self.src = _slots(path, src)
        self.dst = _slots(path, dst)
        if self.src.ndim != 1 or self.src.shape != self.dst.shape:
            raise TransferError(
                f"{path}: sources of shape {self.src.shape} and targets of shape {self.dst.shape}; give one row of each"
            )
        self.priority = priority
        #: Emptied when the transfer is done, lest a chain of transfers keep all of its past in memory.
        self.after: tuple[Transfer, ...] = tuple(after)
        self.payload = payload
        self.ok: npt.NDArray[np.bool_] = np.zeros(len(self.src), np.bool_)
        self.errors: list[TransferError] = []
        self._state = NEW
        self._age = -1
        self._next = 0
        self._left = len(self.src)
        self._waits = 0
        self._dependents: list[Transfer] = []
        self._callbacks: list[DoneCallback] = []
        self._engine: TransferEngine | None = None
        self._event: threading.Event | None = None
        self._settler = 0

    def __len__(self) -> int:
        return len(self.src)

    def __repr__(self) -> str:
        state = ("new", "submitted", "final", "done")[self._state]
        return f"<Transfer {self.path}: {len(self)} blocks, priority {self.priority}, {state}, {self.ok.sum()} ok>"

    def done(self) -> bool:
        """Return whether every block has its outcome and all callbacks have run."""
        return self._state == DONE

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the transfer is done, at most `timeout` seconds; return whether it is.

        A callback of this very transfer sees it as done; to wait in a callback for another one is refused, since it may
        be the waiting thread that should move it.
        """
        if self._state == DONE:
            return True
        engine = self._submitted("waited for")
        me = threading.get_ident()
        with engine._lock:
            if self._state == DONE or self._settler == me:
                return True
            engine._refuse_worker(me, "wait for a transfer")
            if self._event is None:
                self._event = threading.Event()
            event = self._event
        return event.wait(timeout)

    def result(self, timeout: float | None = None) -> npt.NDArray[np.bool_]:
        """Wait until the transfer is done and return `ok`.

        Raises
        ------
        TimeoutError
            If it is not done after `timeout` seconds; it goes on.
        """
        if not self.wait(timeout):
            raise TimeoutError(
                f"{self.path}: {self._left} of {len(self)} blocks are still to be moved after {timeout} s"
            )
        return self.ok

    def cancel(self) -> int:
        """Give up the blocks that have not started; return how many.

        They end as not ok, with an error that says so. Batches in flight finish, the callbacks run as ever, and the
        transfer is not done before those that it comes after.
        """
        engine = self._submitted("cancelled")
        with engine._lock:
            starts, cancelled = engine._cancel(self)
        engine._start(starts)
        return cancelled

    def add_done_callback(self, callback: DoneCallback) -> None:
        """Call `callback(transfer)` when the outcome is final: on a worker thread, or at once if it is done already."""
        if self._engine is None:
            self._callbacks.append(callback)
            return
        with self._engine._lock:
            late = self._state == DONE
            if not late:
                self._callbacks.append(callback)
        if late:
            callback(self)

    def _submitted(self, what: str) -> TransferEngine:
        if self._engine is None:
            raise TierError(f"{self.path}: a transfer cannot be {what} before it is submitted")
        return self._engine


def _slots(path: str, slots: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Return slot numbers as int32, and refuse what would change on the way."""
    given = np.asarray(slots)
    if given.dtype == np.int32:
        return np.ascontiguousarray(given)
    if given.size and given.dtype.kind not in "iu":
        raise TransferError(f"{path}: slots are integers, not {given.dtype}")
    narrow = given.astype(np.int32)
    if not np.array_equal(narrow, given):
        raise TransferError(f"{path}: slots are below 2**31, not up to {given.max()}")
    return narrow
