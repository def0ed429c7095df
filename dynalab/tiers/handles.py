"""What a stack answers with: the prefix that it found, and blocks on their way to the device or to host memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import TransferError, unknown
from dynalab.kv.tiering.rules import N_TIERS, TIERS

if TYPE_CHECKING:
    from dynalab.tiers.stack import TierStack
    from dynalab.tiers.transfer import Transfer

#: How long a prefetch is waited for.
WAITS: Final = ("wait_complete", "best_effort", "timeout")


class Match:
    """The longest prefix of a prompt that the tiers hold, pinned where it lies.

    Onboard it, or release it: until then none of its blocks can be evicted from its tier.

    Attributes
    ----------
    hashes : ndarray of uint64, shape (n,)
        The blocks asked for; the first ``len(match)`` of them are held.
    """

    __slots__ = ("_ids", "_level", "_open", "_slots", "_stack", "hashes")

    def __init__(
        self,
        stack: TierStack,
        hashes: npt.NDArray[np.uint64],
        ids: npt.NDArray[np.int32],
        level: npt.NDArray[np.int8],
        slots: npt.NDArray[np.int32],
    ) -> None:
        self._stack, self.hashes = stack, hashes
        self._ids, self._level, self._slots = ids, level, slots
        self._open = True

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def level(self) -> npt.NDArray[np.int8]:
        """Tier of each block found: 0 device, 1 host, 2 disk; shape (len(match),)."""
        return self._level.copy()

    @property
    def tiers(self) -> dict[str, int]:
        """Blocks found in each tier."""
        counts = np.bincount(self._level, minlength=N_TIERS)
        return dict(zip(TIERS, counts.tolist(), strict=True))

    def __repr__(self) -> str:
        found = ", ".join(f"{count} on {tier}" for tier, count in self.tiers.items() if count) or "nothing"
        return f"<Match: {len(self)} of {len(self.hashes)} blocks ({found}){'' if self._open else ', used'}>"


class Onboarding(Future):
    """Blocks on their way to the device: a future of the longest prefix that arrives.

    ``result()`` is shorter than what was matched where a block was lost on its way: its bytes failed their checksum, or
    a read failed. Such a block is a miss; `failures` says why.
    """

    def __init__(self, transfers: Sequence[Transfer]) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self._transfers = tuple(transfers)

    @property
    def failures(self) -> tuple[TransferError, ...]:
        """Why blocks were lost on their way."""
        return tuple(error for transfer in self._transfers for error in transfer.errors)


class Prefetch:
    """Blocks on their way from disk to host memory.

    Attributes
    ----------
    n_blocks : int
        Blocks that are being copied.
    """

    def __init__(
        self, stack: TierStack, hashes: npt.NDArray[np.uint64], n_blocks: int, transfers: Sequence[Transfer]
    ) -> None:
        self._stack, self._hashes = stack, hashes
        self.n_blocks = n_blocks
        self._transfers = tuple(transfers)

    def done(self) -> bool:
        """Return whether all copies have ended; those that were given up, or left to other requests, do not count."""
        return all(transfer.done() for transfer in self._transfers)

    def wait(self, policy: str = "wait_complete", *, base: float = 1.0, per_ki_token: float = 0.25) -> int:
        """Wait for the copies, give up those that come too late, and return the prefix that need not wait for a disk.

        Parameters
        ----------
        policy : {"wait_complete", "best_effort", "timeout"}
            As long as it takes; not at all; or up to ``base + per_ki_token * tokens / 1024`` seconds, tokens being
            those of the blocks on their way.
        base, per_ki_token : float
            Seconds.

        Returns
        -------
        int
            Blocks at the front of the sequence that are on the device or in host memory, arrived or on their way from
            there; match these: ``stack.match(hashes[:n])``.
        """
        seconds = self._patience(policy, base, per_ki_token)
        if seconds is None:
            for transfer in self._transfers:
                transfer.wait()
        else:
            deadline = time.monotonic() + seconds
            for transfer in self._transfers:
                transfer.wait(max(0.0, deadline - time.monotonic()))
            self._transfers = tuple(self._stack._give_up(self._transfers))
            for transfer in self._transfers:
                transfer.wait()
        return self._stack._prefix_above_disk(self._hashes)

    def _patience(self, policy: str, base: float, per_ki_token: float) -> float | None:
        """Return how many seconds to wait; None is as long as it takes."""
        if policy not in WAITS:
            raise unknown("policy", policy, WAITS)
        if policy == "timeout":
            return base + per_ki_token * self.n_blocks * self._stack.layout.page_tokens / 1024
        return 0.0 if policy == "best_effort" else None
