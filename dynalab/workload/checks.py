"""What every request of a trace must satisfy, checked for many requests at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dynalab.errors import TraceError
from dynalab.workload.dense import densify

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


def checked_columns(
    arrival: npt.ArrayLike,
    input_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    block_ids: npt.ArrayLike | None,
    offsets: npt.ArrayLike | None,
    block_tokens: int | None,
) -> dict[str, Any]:
    """Check and convert the columns that :meth:`Trace.from_columns` takes.

    Returns
    -------
    dict
        The column fields of a :class:`Trace`, by name.

    Raises
    ------
    TraceError
        If a column has the wrong length or type, or a request breaks a rule.
    """
    try:
        times = np.asarray(arrival, np.float64)
    except (ValueError, TypeError):
        raise TraceError("arrival must be numbers of seconds") from None
    prompts, outputs = _whole("input_tokens", input_tokens), _whole("output_tokens", output_tokens)
    if times.ndim != 1 or not times.size:
        raise TraceError("arrival must be one column with at least one request")
    for name, column in (("input_tokens", prompts), ("output_tokens", outputs)):
        if column.shape != times.shape:
            raise TraceError(f"{name} has shape {column.shape}, arrival {times.shape}: they must be equal")
    # Lengths first: the number of blocks follows from them.
    fault = first_fault(times, prompts, outputs, previous=0.0)
    counts = None
    raw = np.empty(0, np.int64)
    if fault is None and block_ids is not None:
        if not isinstance(block_tokens, int | np.integer) or block_tokens < 1:
            raise TraceError(f"block_ids need block_tokens, a whole number from 1 up, not {block_tokens!r}")
        raw = _whole("block_ids", block_ids)
        counts = _counts(offsets, prompts, block_tokens, raw.size)
        fault = first_fault(times, prompts, outputs, counts, block_tokens)
    elif fault is None and (offsets is not None or block_tokens is not None):
        raise TraceError("offsets and block_tokens go with block_ids: give all of them or none")
    if fault is not None:
        raise TraceError(f"request {fault.row}: {fault.message}")
    starts = np.zeros(times.size + 1, np.int64)
    if counts is not None:
        np.cumsum(counts, out=starts[1:])
    return {
        "arrival": times - times[0],
        "input_tokens": prompts.astype(np.int32),
        "output_tokens": outputs.astype(np.int32),
        "block_ids": densify(raw)[0],
        "offsets": starts,
        "block_tokens": None if block_tokens is None else int(block_tokens),
    }


def _whole(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return a column of whole numbers as int64 (unsigned 64-bit hashes keep their bits)."""
    column = np.asarray(values)
    if column.size == 0:
        return np.zeros(column.shape, np.int64)
    if column.dtype.kind not in "iu":
        raise TraceError(f"{name} must be whole numbers, not {column.dtype}")
    if name.endswith("_tokens") and int(column.max()) > MAX_TOKENS:
        row = int(np.argmax(column > MAX_TOKENS))
        raise TraceError(f"request {row}: {name} is {column[row]}: it must be at most {MAX_TOKENS}")
    return column.astype(np.int64)


def _counts(
    offsets: npt.ArrayLike | None, prompts: npt.NDArray[np.int64], block_tokens: int, n_accesses: int
) -> npt.NDArray[np.int64]:
    """Blocks per request, from the offsets where they are given."""
    if offsets is None:
        counts = block_count(prompts, block_tokens)
        if int(counts.sum()) != n_accesses:
            raise TraceError(
                f"{n_accesses} block ids for requests that need {int(counts.sum())} blocks of {block_tokens} tokens"
            )
        return counts
    starts = _whole("offsets", offsets) if np.size(offsets) else np.zeros(0, np.int64)
    if starts.shape != (prompts.size + 1,) or starts[0] != 0 or starts[-1] != n_accesses:
        raise TraceError(f"offsets must be {prompts.size + 1} numbers from 0 to {n_accesses}, the number of block ids")
    return np.diff(starts)
