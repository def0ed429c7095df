"""Files of a trace: which ones a path names, and their lines as a stream."""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from dynalab.errors import TraceError

_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
_READ = 1 << 20
_LONGEST_LINE = 64 << 20


class Hash(Protocol):
    """What :mod:`hashlib` makes."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes in."""

    def hexdigest(self) -> str:
        """Return the digest so far."""


def trace_files(path: str | Path) -> list[Path]:
    """Files that a path, a directory or a glob pattern names, in order of their names.

    A directory stands for its ``.jsonl`` and ``.csv`` files, gzipped or not; AIPerf's artifact directory stands for
    its ``profile_export.jsonl``.

    Raises
    ------
    TraceError
        If there is no such file, or the same file lies there both plain and gzipped.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        export = place / "profile_export.jsonl"
        found = [export] if export.is_file() else [file for file in place.iterdir() if _is_trace(file)]
        if not found:
            raise TraceError(f"the directory holds no {', '.join(_SUFFIXES)} file", path=place)
    elif place.exists():
        return [place]
    else:
        found = [Path(name) for name in glob.glob(str(place), recursive=True) if Path(name).is_file()]
        if not found:
            what = "no file matches this pattern" if glob.has_magic(str(place)) else "no such file or directory"
            raise TraceError(what, path=place)
    found.sort()
    names = set(map(str, found))
    for name in sorted(names):
        if name + ".gz" in names:
            raise TraceError(f"lies beside {Path(name).name}.gz: keep one of them, or name the one to read", path=name)
    return found


def _is_trace(file: Path) -> bool:
    return file.name.endswith(_SUFFIXES) and not file.name.startswith(".") and file.is_file()


def stream_lines(path: Path, digest: Hash, bar: Any = None) -> Iterator[list[bytes]]:
    """Lines of a text file, gzipped or not, about a mebibyte at a time.

    Parameters
    ----------
    path : Path
    digest : hash
        Is fed the uncompressed bytes.
    bar : tqdm, optional
        Progress bar over bytes on disk.

    Yields
    ------
    list of bytes
        Lines without their ends.

    Raises
    ------
    TraceError
        If the file cannot be read, is binary, or its compression is cut short or broken.
    """
    line = 1
    rest = b""
    try:
        with path.open("rb") as raw:
            magic = raw.read(2)
            raw.seek(0)
            zipped = magic == b"\x1f\x8b"
            if not zipped and magic and path.name.endswith(".gz"):
                raise TraceError("is named .gz but is not gzipped: rename or compress it", path=path)
            text: IO[bytes] = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]
            done = 0
            while block := text.read(_READ):
                digest.update(block)
                if b"\0" in block:
                    raise TraceError(
                        "binary data, but a trace is JSON lines or CSV, either perhaps gzipped", path=path, line=line
                    )
                block = rest + block
                if line == 1 and block.startswith(b"\xef\xbb\xbf"):
                    block = block[3:]
                cut = block.rfind(b"\n")
                rest = block[cut + 1 :]
                if len(rest) > _LONGEST_LINE:
                    raise TraceError(
                        f"a line of more than {_LONGEST_LINE >> 20} MiB: write one request per line",
                        path=path,
                        line=line + block.count(b"\n"),
                    )
                if cut >= 0:
                    lines = block[:cut].split(b"\n")
                    yield lines
                    line += len(lines)
                if bar is not None:
                    bar.update(raw.tell() - done)
                    done = raw.tell()
    except EOFError:
        raise TraceError(
            f"the gzip stream ends too early, after line {line + bool(rest) - 1}: copy or compress the file again",
            path=path,
            line=line,
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"broken gzip data ({error}): copy or compress the file again", path=path, line=line) from None
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror or error}", path=path) from None
    if rest:
        yield [rest]
