"""What every request of a trace must satisfy, checked for many requests at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

#: Lengths are kept as int32.
MAX_TOKENS = 2**31 - 1


class Names(NamedTuple):
    """What the columns are called where they come from, for error messages."""

    time: str = "arrival"
    input_tokens: str = "input_tokens"
    output_tokens: str = "output_tokens"
    block_ids: str = "block_ids"


class Fault(NamedTuple):
    """The first request that breaks a rule."""

    row: int
    message: str


def block_count(input_tokens: npt.NDArray[np.integer], block_tokens: int) -> npt.NDArray[np.int64]:
    """Blocks that cover so many tokens, the last one perhaps partial: ``ceil(input_tokens / block_tokens)``."""
    return -(-np.asarray(input_tokens, np.int64) // block_tokens)


def first_fault(
    time: npt.NDArray[np.int64] | npt.NDArray[np.float64],
    input_tokens: npt.NDArray[np.int64],
    output_tokens: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64] | None = None,
    block_tokens: int | None = None,
    *,
    previous: float | None = None,
    names: Names = Names(),  # noqa: B008 - immutable
    cure: str = "sort the requests by it",
) -> Fault | None:
    """Find the first request with a time, a length or a number of blocks that cannot be.

    Parameters
    ----------
    time : ndarray, shape (n,)
        Arrival times in any unit.
    input_tokens, output_tokens : ndarray of int64, shape (n,)
    counts : ndarray of int64, shape (n,), optional
        Block ids per request; None where the trace has no blocks.
    block_tokens : int, optional
        Tokens per block; given together with `counts`.
    previous : float, optional
        Time of the request before the first, in the unit of `time`. None: the order is not checked.
    names : Names
        Names of the columns for the message.
    cure : str
        What helps against times that run backwards.

    Returns
    -------
    Fault or None
    """
    bad = ~np.isfinite(time) | (time < 0)
    bad |= (input_tokens < 1) | (input_tokens > MAX_TOKENS) | (output_tokens < 0) | (output_tokens > MAX_TOKENS)
    earlier = None
    if previous is not None:
        earlier = np.concatenate([np.asarray([previous], time.dtype), time[:-1]])
        bad |= time < earlier
    wanted = None
    if counts is not None and block_tokens is not None:
        wanted = block_count(input_tokens, block_tokens)
        bad |= counts != wanted
    if not bad.any():
        return None
    row = int(np.argmax(bad))
    at, prompt, generated = time[row], int(input_tokens[row]), int(output_tokens[row])
    if not np.isfinite(at) or at < 0:
        return Fault(row, f"{names.time} is {at}: it must be a number from 0 up")
    for name, value, least in ((names.input_tokens, prompt, 1), (names.output_tokens, generated, 0)):
        if not least <= value <= MAX_TOKENS:
            return Fault(row, f"{name} is {value}: it must lie between {least} and {MAX_TOKENS}")
    if earlier is not None and at < earlier[row]:
        return Fault(row, f"{names.time} runs backwards, from {earlier[row]} to {at}: {cure}")
    assert counts is not None
    assert wanted is not None
    assert block_tokens is not None
    return Fault(row, _wrong_count(int(counts[row]), int(wanted[row]), prompt, block_tokens, names))


def _wrong_count(count: int, wanted: int, prompt: int, block_tokens: int, names: Names) -> str:
    message = (
        f"{count} {names.block_ids} for {prompt} input tokens: blocks of {block_tokens} tokens need {wanted} "
        f"(the last may be partial)"
    )
    likely = [size for size in (2**k for k in range(3, 13)) if -(-prompt // size) == count and size != block_tokens]
    if likely and count > 1:
        message += f"; if a block holds {likely[0]} tokens, pass block_tokens={likely[0]}"
    return message
