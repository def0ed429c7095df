"""The errors that dynalab raises on purpose.

Each message is one line that says what was wrong, where, and what would be right. The command line prints that line and
exits with code 2; library users catch :class:`DynalabError` or one of its children.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class DynalabError(Exception):
    """Base of every error that a user can cause or cure."""


class TraceError(DynalabError):
    """A trace that cannot be read, written or used as asked.

    Parameters
    ----------
    message : str
        What is wrong and what would be right.
    path : str, optional
        File that holds the culprit.
    line : int, optional
        One-based line number in that file.
    """

    def __init__(self, message: str, *, path: object = None, line: int | None = None) -> None:
        self.path = None if path is None else str(path)
        self.line = line
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(where + message)


class ConfigError(DynalabError, ValueError):
    """A parameter with a value that cannot be used: names the field, the value and what would be right."""


def did_you_mean(name: object, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the `known` names that come closest to a misspelt one, the closest first, at most `most` of them.

    Examples
    --------
    >>> did_you_mean("poison", ["poisson", "gamma"])
    ['poisson']
    """
    from difflib import get_close_matches

    return get_close_matches(str(name), list(known), n=most, cutoff=cutoff)


def unknown(field: str, value: object, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that does not exist: with the closest one, if any is close, and all of them.

    Examples
    --------
    >>> print(unknown("policy", "lruu", ["lru", "fifo"]))
    policy: 'lruu' does not exist; did you mean 'lru'? choose from lru, fifo
    """
    known = list(known)
    close = did_you_mean(value, known, most=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ConfigError(f"{field}: {value!r} does not exist; {hint}choose from {', '.join(known)}")


class ReportError(DynalabError):
    """A report that could not be made."""


class LayoutError(ConfigError):
    """A KV layout that cannot exist, or that does not fit what it is laid over."""


class BlockStateError(DynalabError):
    """An operation on a block whose state does not allow it."""


class TierError(DynalabError):
    """A memory tier that cannot do what was asked."""


class NotEnoughBlocks(TierError):
    """More blocks asked than a tier can free: nothing was allocated.

    Parameters
    ----------
    requested, available : int
        Blocks asked for, and blocks that are free or can be evicted.
    tier : str
        Name of the tier.
    """

    def __init__(self, requested: int, available: int, tier: str = "device") -> None:
        self.requested, self.available, self.tier = requested, available, tier
        super().__init__(
            f"{tier}: {requested} blocks asked, {available} free or evictable; release blocks, or make the tier larger"
        )


class TransferError(TierError):
    """A copy between tiers that failed: its targets hold nothing."""


class CorruptBlock(TransferError):
    """A block whose bytes do not match their checksum; it is a miss, and never served."""


class TierInUse(TierError):
    """A tier's file that another process, or another tier of this one, holds open."""


class TierFull(TierError):
    """No space for a tier's file, on the file system or under its physical cap."""


class TierClosed(TierError):
    """A tier, engine or stack that was closed is asked for something."""


class DeviceMemoryError(TierError):
    """Device or pinned memory that cannot be had."""


class PoolError(DynalabError):
    """An object pool that cannot do what was asked."""


class PoolTimeout(PoolError, TimeoutError):
    """No item of a pool became free in time; nothing was taken."""


class PoolClosed(PoolError):
    """A pool that was closed is asked for an item, or was closed while one was awaited."""


class PoolExhausted(PoolError):
    """No healthy item is left in a pool, and none will come."""


class NetError(DynalabError):
    """A request over the network, or a peer, that failed."""


class AddressError(NetError, ConfigError):
    """An address that does not parse or resolve."""


class FrameError(NetError):
    """Bytes that are no frame, or something that cannot be sent as one.

    Attributes
    ----------
    frames_before_error : tuple
        Complete frames that a decoder read before the fault, in the call that raised.
    """

    frames_before_error: tuple[Any, ...] = ()


class MessageTooLarge(FrameError):
    """A frame beyond the limit of its sender or of its receiver."""


class CannotConnect(NetError, ConnectionError):
    """No connection could be had; the request was not sent."""


class ConnectionLost(NetError, ConnectionError):
    """A connection that ended before the response came.

    Parameters
    ----------
    message : str
        What ended it.
    maybe_handled : bool
        Whether a byte of the request was written, so that its handler may have run.
    """

    def __init__(self, message: str, *, maybe_handled: bool = True) -> None:
        self.maybe_handled = maybe_handled
        super().__init__(message)


class RequestTimeout(NetError, TimeoutError):
    """No response in time.

    Parameters
    ----------
    message : str
        Which request, and how long it waited.
    maybe_handled : bool
        Whether a byte of the request was written, so that its handler may have run.
    """

    def __init__(self, message: str, *, maybe_handled: bool = True) -> None:
        self.maybe_handled = maybe_handled
        super().__init__(message)


class ServerOverloaded(NetError):
    """The server's queue is full; its handler did not run."""


class ServerUnavailable(NetError):
    """The server has no handler by that path, or is draining; no handler ran."""


class HandlerFailed(NetError):
    """The handler ran and failed."""


class NetClosed(NetError):
    """A client or an endpoint that was closed is asked for something."""
