"""Reading traces: lines stream through a format into growing columns."""

from __future__ import annotations

import hashlib
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dynalab.errors import TraceError
from dynalab.workload.checks import first_fault
from dynalab.workload.dense import densify, ragged, relabel
from dynalab.workload.files import stream_lines, trace_files
from dynalab.workload.formats import BadRecord, Batch, Format, detect, format_named, parse_first
from dynalab.workload.trace import Trace

#: Files of more than this many bytes together show a progress bar by default.
_LONG = 64 << 20


def read_trace(
    path: str | Path,
    format: str = "auto",
    *,
    block_tokens: int | None = None,
    sort: bool = False,
    progress: bool | None = None,
) -> Trace:
    """Read a request trace in one of the field's public formats.

    Parameters
    ----------
    path : str or Path
        A file, plain or gzipped; a directory; or a glob pattern. Several files must have one format; they are read in
        order of their names as if they were one, block ids shared.
    format : str
        "auto", or a name in :data:`dynalab.workload.formats.FORMATS`: mooncake, azure, burstgpt, bailian, aiperf,
        dynamo.
    block_tokens : int, optional
        Tokens per block id. By default what the format says: 512 (mooncake), 16 (bailian), or what the file itself
        says (dynamo).
    sort : bool
        Put requests in order of arrival (on a tie: of the file) instead of refusing times that run backwards. AIPerf
        and Dynamo write requests when they end; those are always sorted.
    progress : bool, optional
        Show a progress bar; by default for more than 64 MiB.

    Returns
    -------
    Trace
        Its ``sha256`` is that of the uncompressed text, several files end to end. ``attrs`` hold ``format``,
        ``origin_s`` (the first arrival as the file gave it, in seconds), ``dropped_rows`` (lines that were no request
        to replay) and ``files`` where there were several.

    Raises
    ------
    TraceError
        One line that names file, line, the first thing that is wrong, and what would be right.

    Notes
    -----
    Memory stays below three times the columns. See the modules of :mod:`dynalab.workload.formats` for what each format
    holds and what is dropped.
    """
    kind = None if format == "auto" else format_named(format)
    if block_tokens is not None and (type(block_tokens) is not int or block_tokens < 1):
        raise TraceError(f"block_tokens is {block_tokens!r}: it must be a whole number from 1 up")
    files = trace_files(path)
    size = sum(file.stat().st_size for file in files)
    reading = _Reading(kind, block_tokens, sort)
    if progress is None:
        progress = size > _LONG and sys.stderr.isatty()
    if progress:
        from tqdm.auto import tqdm

        with tqdm(total=size, unit="B", unit_scale=True, desc=f"reading {Path(path).name}") as bar:
            for file in files:
                reading.file(file, bar)
    else:
        for file in files:
            reading.file(file, None)
    return reading.finish(str(path), files)


class _Column:
    """A column that grows in place: a list of chunks would need twice its memory to join."""

    def __init__(self, typecode: str) -> None:
        self.values = array(typecode)

    def extend(self, chunk: npt.NDArray[Any]) -> None:
        """Append numbers, with a wider type from here on where they need one."""
        wanted = self.values.typecode
        if chunk.dtype.kind == "f":
            wanted = "d"
        elif wanted == "i" and chunk.size and (chunk.min() < -(2**31) or chunk.max() >= 2**31):
            wanted = "q"
        if wanted != self.values.typecode:
            self.values = array(wanted, self.data().astype(wanted).tobytes())
        self.values.frombytes(chunk.astype(self.values.typecode, copy=False).tobytes())

    def data(self) -> npt.NDArray[Any]:
        """Return the numbers so far, without a copy."""
        return np.frombuffer(self.values, self.values.typecode)


class _Reading:
    """Columns of the files read so far."""

    def __init__(self, kind: type[Format] | None, block_tokens: int | None, sort: bool) -> None:
        self.kind = kind
        self.given_block_tokens = block_tokens
        self.sort = sort
        self.format: Format | None = None
        self.path = Path()
        self.digest = hashlib.sha256()
        self.time = _Column("q")
        self.input_tokens = _Column("i")
        self.output_tokens = _Column("i")
        self.counts = _Column("i")
        self.ids = _Column("i")
        self.with_ids = False
        self.last = 0.0
        self.dropped = 0

    @property
    def n_requests(self) -> int:
        return len(self.time.values)

    def file(self, path: Path, bar: Any) -> None:
        """Read one file to its end."""
        self.path = path
        before, begun, line = self.n_requests, False, 1
        for lines in stream_lines(path, self.digest, bar):
            count = len(lines)
            if not begun:
                blank = next((n for n, text in enumerate(lines) if text.strip()), count)
                lines, line, count = lines[blank:], line + blank, count - blank
                if not lines:
                    continue
                begun = True
                if self._begin(lines[0], line):
                    lines, line, count = lines[1:], line + 1, count - 1
            self._consume(lines, line)
            line += count
        if not begun:
            raise TraceError("is empty: a trace has at least one request", path=path)
        if self.n_requests == before and not self.dropped:
            raise TraceError("has a header but no requests", path=path)

    def _begin(self, first: bytes, line: int) -> bool:
        """Settle the format by the first line; return whether that line is a header."""
        try:
            record = parse_first(first)
            kind = self.kind or detect(record)
            if self.format is None:
                self.format = kind(self.given_block_tokens)
            elif type(self.format) is not kind:
                raise BadRecord(
                    f"is {kind.title}, but the files before are {self.format.title}: read one format at a time"
                )
            if isinstance(record, list) is not kind.has_header:
                wanted = "a CSV header" if kind.has_header else "JSON objects, one per line"
                raise BadRecord(f"not {kind.title}, which has {wanted}")
            earlier = self.format.names.time if self.n_requests else None
            self.format.begin(record)
            if earlier not in (None, self.format.names.time):
                raise BadRecord(
                    f"times are in {self.format.names.time}, in {earlier} in the files before: read them one by one"
                )
        except BadRecord as error:
            raise TraceError(str(error), path=self.path, line=line) from None
        return self.format.has_header

    def _consume(self, lines: list[bytes], line: int) -> None:
        """Take lines in, the first of which has this number; if something is wrong, find the first culprit."""
        assert self.format is not None
        wanted = [text for text in lines if text and not text.isspace()]
        if not wanted:
            return
        try:
            batch = self.format.parse(wanted)
            self._append(batch)
        except BadRecord as error:
            if len(lines) == 1:
                raise TraceError(str(error), path=self.path, line=line) from None
            # Halving finds the first bad line in a few steps, and nothing of a good batch is lost on the way.
            half = len(lines) // 2
            self._consume(lines[:half], line)
            self._consume(lines[half:], line + half)

    def _append(self, batch: Batch) -> None:
        assert self.format is not None
        format, ordered = self.format, self.format.ordered and not self.sort
        self.dropped += batch.dropped
        if not batch.time.size:
            return
        if self.n_requests and self.with_ids is not (batch.ids is not None):
            raise BadRecord(f"some requests have {format.names.block_ids} and some have not: give all of them or none")
        fault = first_fault(
            batch.time,
            batch.input_tokens,
            batch.output_tokens,
            batch.counts,
            format.block_tokens,
            previous=self.last if ordered else None,
            names=format.names,
            cure="read it with sort=True if that is meant",
        )
        if fault is not None:
            raise BadRecord(fault.message)
        self.last = batch.time[-1]
        self.time.extend(batch.time)
        self.input_tokens.extend(batch.input_tokens)
        self.output_tokens.extend(batch.output_tokens)
        if batch.ids is not None and batch.counts is not None:
            self.with_ids = True
            self.counts.extend(batch.counts)
            self.ids.extend(batch.ids)

    def finish(self, source: str, files: list[Path]) -> Trace:
        """Make the trace of everything read."""
        assert self.format is not None
        format = self.format
        if not self.n_requests:
            raise TraceError(
                f"holds no request to replay: all {self.dropped} lines are failures, warm-up or other events",
                path=source,
            )
        time = self.time.data()
        offsets = np.zeros(time.size + 1, np.int64)
        if self.with_ids:
            np.cumsum(self.counts.data(), out=offsets[1:])
        ids, known = densify(self.ids.data(), reuse=True)
        self.ids = self.counts = _Column("i")
        prompts, outputs = self.input_tokens.data(), self.output_tokens.data()
        if self.sort or not format.ordered:
            order = np.argsort(time, kind="stable")
            time, prompts, outputs = time[order], prompts[order], outputs[order]
            accesses, offsets = ragged(offsets, order)
            ids, known = relabel(ids[accesses], known)
        # Subtracting first keeps Unix times in nanoseconds exact.
        arrival = (time - time[0]) / float(format.ticks)
        attrs: dict[str, Any] = {
            "format": format.name,
            "origin_s": float(time[0]) / format.ticks,
            "dropped_rows": self.dropped,
        }
        if len(files) > 1:
            attrs["files"] = [file.name for file in files]
        return Trace(
            arrival=arrival,
            input_tokens=prompts,
            output_tokens=outputs,
            block_ids=ids,
            offsets=offsets,
            block_tokens=format.block_tokens if self.with_ids else None,
            source=source,
            sha256=self.digest.hexdigest(),
            attrs=attrs,
        )
