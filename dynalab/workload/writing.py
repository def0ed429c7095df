"""Writing traces as Mooncake JSONL that AIPerf and Dynamo replay."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from dynalab.errors import TraceError
from dynalab.workload.dense import densify
from dynalab.workload.reblock import require_partial_blocks

if TYPE_CHECKING:
    from dynalab.workload.trace import Trace

_ROWS = 4096

#: In milliseconds.
_NANOSECOND = 1e-6


def write_trace(trace: Trace, path: str | Path) -> Path:
    """Write a trace as Mooncake JSONL, gzipped where the name ends in ``.gz``.

    The file appears when it is complete: it is written beside its place and renamed. Timestamps are milliseconds,
    whole where that is exact to the nanosecond. AIPerf makes the text of a block once, at the length that it first
    sees, so that a ``hash_id`` must always stand for the same number of tokens: a block that is partial in one prompt
    and longer in another gets an id for each length.

    Parameters
    ----------
    trace : Trace
        With or without block ids (``hash_ids`` are left out then).
    path : str or Path

    Returns
    -------
    Path
        Where it lies.

    Raises
    ------
    TraceError
        If the place cannot be written, a request generates no token (AIPerf refuses such a file, Dynamo's replay never
        ends), or the trace lost its partial blocks (``full_blocks()``).

    Notes
    -----
    Reading the file gives an equal trace, except that arrivals which are no whole milliseconds may differ by a
    nanosecond or in the last bit. The format does not hold the block size: with other than 512 tokens, read it with
    ``block_tokens=`` and give AIPerf ``--isl-block-size``. Without that flag AIPerf refuses smaller blocks, and fills
    prompts of larger ones with text that nothing shares.

    AIPerf 0.13 makes the text of a block from its id, ``--random-seed`` and the file's contents: prompts of two files
    share nothing, even where one is the head of the other. Every block begins with the tokenizer's first special token,
    so that blocks of a single token are all alike.
    """
    place = Path(path).expanduser()
    _require_output(trace)
    ids = None
    if trace.has_blocks:
        require_partial_blocks(trace, "write")
        ids = _ids_of_one_length(trace)
    beside = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as raw:
            if place.name.endswith(".gz"):
                # No name and no time inside: equal traces give equal files.
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed:
                    _write_rows(trace, ids, packed)  # type: ignore[arg-type]
            else:
                _write_rows(trace, ids, raw)
        beside.replace(place)
    except OSError as error:
        raise TraceError(f"cannot be written: {error.strerror or error}", path=place) from None
    finally:
        beside.unlink(missing_ok=True)
    return place


def _require_output(trace: Trace) -> None:
    silent = np.flatnonzero(trace.output_tokens < 1)
    if silent.size:
        raise TraceError(
            f"cannot write a trace for replay in which {silent.size:,} of {len(trace):,} requests generate no token"
            f" (the first is request {silent[0]}): keep the others with trace.filter(trace.output_tokens > 0)"
        )


def _write_rows(trace: Trace, ids: npt.NDArray[np.int32] | None, out: IO[bytes]) -> None:
    rows: list[bytes] = []
    for row in _rows(trace, ids):
        rows.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        if len(rows) == _ROWS:
            out.write(b"".join(rows))
            rows.clear()
    out.write(b"".join(rows))


def _rows(trace: Trace, ids: npt.NDArray[np.int32] | None) -> Iterator[dict[str, Any]]:
    stamps = _milliseconds(trace.arrival)
    prompts, outputs = trace.input_tokens.tolist(), trace.output_tokens.tolist()
    bounds = trace.offsets.tolist()
    for n, stamp in enumerate(stamps):
        row = {"timestamp": stamp, "input_length": prompts[n], "output_length": outputs[n]}
        if ids is not None:
            row["hash_ids"] = ids[bounds[n] : bounds[n + 1]].tolist()
        yield row


def _milliseconds(arrival: npt.NDArray[np.float64]) -> list[int | float]:
    """Milliseconds that become the same seconds again when they are read, whole ones to the nanosecond."""
    stamps = arrival * 1000
    for other in (np.nextafter(stamps, -np.inf), np.nextafter(stamps, np.inf)):
        stamps = np.where(other / 1000 == arrival, other, stamps)
    # Where no double divides to the very arrival, the nearest may lie an ulp below the one before.
    stamps = np.maximum.accumulate(stamps)
    # Arrivals that were subtracted or divided miss their millisecond by a rounding error; older AIPerf wants integers.
    whole = np.abs(stamps - np.rint(stamps)) <= _NANOSECOND
    stamps[whole] = np.rint(stamps[whole])
    return [int(stamp) if exact else stamp for stamp, exact in zip(stamps.tolist(), whole.tolist(), strict=True)]


def _ids_of_one_length(trace: Trace) -> npt.NDArray[np.int32]:
    """Block ids, with ids of their own for the shorter appearances of a block."""
    lengths = trace.block_lengths()
    least = np.full(trace.n_blocks, np.iinfo(np.int32).max, np.int32)
    most = np.zeros(trace.n_blocks, np.int32)
    np.minimum.at(least, trace.block_ids, lengths)
    np.maximum.at(most, trace.block_ids, lengths)
    if np.array_equal(least, most):
        return trace.block_ids
    size = trace.require_blocks()
    return densify(trace.block_ids * np.int64(size) + lengths % size, reuse=True)[0]
