"""What a row of allocations does to a stream-ordered pool: predicted by the model, or measured on a GPU.

Both give the same Dataset, so that one can be laid over the other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from dynalab.errors import ConfigError
from dynalab.pools import _cuda
from dynalab.pools.memory import CudaMemoryPool, DeviceBuffer
from dynalab.pools.pool_model import Allocation, PoolModel

if TYPE_CHECKING:
    import xarray as xr

_COUNTS = ("used", "reserved", "used_high", "reserved_high")
_NON_BLOCKING, _NO_TIMING = 1, 2


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """One call of the host.

    Parameters
    ----------
    time : float
        When the host makes the call, if it is not kept waiting till later [s].
    kind : str
        "allocate" (`nbytes` for `stream`, to be known as `name`), "free" (`name`, behind the work on `stream`), "work"
        (keeps `stream` busy for `seconds`), "wait" (`stream` waits for the work on `other`), "synchronize" (the host
        waits for `stream`, or for all if it is None), or "trim" (to `nbytes`).
    stream : int or None
        Any number; "free" without one means that of the allocation.
    """

    time: float
    kind: Literal["allocate", "free", "work", "wait", "synchronize", "trim"]
    stream: int | None = None
    name: str = ""
    nbytes: int = 0
    other: int = 0
    seconds: float = 0.0


def predict_pool(events: Iterable[PoolEvent], model: PoolModel) -> xr.Dataset:
    """Return what the model says that a pool holds after every event.

    Parameters
    ----------
    events : iterable of PoolEvent
        In the order of the host's calls; their times must not fall.
    model : PoolModel
        A fresh model; it is used up.

    Returns
    -------
    xarray.Dataset
        ``used``, ``reserved``, ``used_high`` and ``reserved_high`` [bytes] over the dimension ``event``, with the
        events' ``time`` and ``kind`` as coordinates and ``device="model"`` among the attributes.

    Raises
    ------
    ConfigError
        If an event cannot be: an unknown kind, a name that is not allocated or is so already, a time that falls.
    DeviceMemoryError
        If the modelled memory is exhausted.

    Examples
    --------
    >>> use = [PoolEvent(0, "allocate", 1, "a", 3 << 20), PoolEvent(1, "free", name="a"), PoolEvent(2, "synchronize")]
    >>> predict_pool(use, PoolModel()).reserved.values.tolist()
    [4194304, 4194304, 0]
    """
    held: dict[str, Allocation] = {}

    def apply(event: PoolEvent, stream: int) -> None:
        model.now = max(model.now, event.time)
        if event.kind == "allocate":
            held[event.name] = model.allocate(event.nbytes, stream)
        elif event.kind == "free":
            model.free(held.pop(event.name), event.stream)
        elif event.kind == "work":
            model.work(stream, event.seconds)
        elif event.kind == "wait":
            model.wait(stream, event.other)
        elif event.kind == "synchronize":
            model.synchronize(event.stream)
        else:
            model.trim(event.nbytes)

    attributes = {"device": "model", "release_threshold": model.release_threshold, "granularity": model.granularity}
    return _run(events, held, apply, model.stats, attributes)


def measure_pool(events: Iterable[PoolEvent], pool: CudaMemoryPool) -> xr.Dataset:
    """Make the calls on a GPU and return what the driver says that the pool holds after each.

    Parameters
    ----------
    events : iterable of PoolEvent
        As for `predict_pool`. Work is a host function in the stream that sleeps.
    pool : CudaMemoryPool
        The pool to use; its high-water marks begin anew.

    Returns
    -------
    xarray.Dataset
        As of `predict_pool`, with ``device="cuda:0"`` or the like.

    Raises
    ------
    ConfigError, DeviceMemoryError
        As `predict_pool`.
    """
    runtime, held = _cuda.runtime(), dict[str, DeviceBuffer]()
    begin = time.perf_counter()
    with _streams(runtime) as stream_of:

        def apply(event: PoolEvent, stream: int) -> None:
            time.sleep(max(0.0, event.time - (time.perf_counter() - begin)))
            if event.kind == "allocate":
                held[event.name] = pool.allocate(event.nbytes, stream_of(stream))
            elif event.kind == "free":
                held.pop(event.name).free(None if event.stream is None else stream_of(stream))
            elif event.kind == "work":
                runtime.launchHostFunc(stream_of(stream), lambda _: time.sleep(event.seconds), 0)
            elif event.kind == "wait":
                mark = runtime.eventCreateWithFlags(_NO_TIMING)
                runtime.eventRecord(mark, stream_of(event.other))
                runtime.streamWaitEvent(stream_of(stream), mark)
                runtime.eventDestroy(mark)
            elif event.kind == "synchronize" and event.stream is None:
                runtime.deviceSynchronize()
            elif event.kind == "synchronize":
                runtime.streamSynchronize(stream_of(stream))
            else:
                pool.trim(event.nbytes)

        pool.reset_high_water()
        attributes = {"device": f"cuda:{pool.device}", "release_threshold": pool.release_threshold}
        try:
            return _run(events, held, apply, pool.stats, attributes)
        finally:
            for buffer in held.values():
                buffer.free()


@contextlib.contextmanager
def _streams(runtime: Any) -> Iterator[Callable[[int], int]]:
    """Yield a function from an event's stream number to a CUDA stream of its own."""
    made: dict[int, int] = {}

    def stream_of(number: int) -> int:
        if number not in made:
            made[number] = runtime.streamCreateWithFlags(_NON_BLOCKING)
        return made[number]

    try:
        yield stream_of
    finally:
        for stream in made.values():
            runtime.streamSynchronize(stream)
            runtime.streamDestroy(stream)


def _run(
    events: Iterable[PoolEvent],
    held: Mapping[str, object],
    apply: Callable[[PoolEvent, int], None],
    stats: Callable[[], dict[str, int]],
    attributes: dict[str, Any],
) -> xr.Dataset:
    """Check events, with the names held so far, and apply them one by one; note the statistics after each."""
    import xarray as xr

    events, rows = list(events), list[dict[str, int]]()
    for n, event in enumerate(events):
        if n and event.time < events[n - 1].time:
            raise ConfigError(f"event {n}: its time {event.time} lies before that of the one ahead; sort the events")
        if event.kind not in ("allocate", "free", "work", "wait", "synchronize", "trim"):
            raise ConfigError(f"event {n}: kind {event.kind!r} does not exist; see PoolEvent")
        if (event.kind == "allocate") == (event.name in held) and event.kind in ("allocate", "free"):
            state = "allocated already" if event.kind == "allocate" else "not allocated"
            raise ConfigError(f"event {n}: {event.name!r} is {state}; give every allocation a name of its own")
        apply(event, event.stream or 0)
        rows.append(stats())
    variables = {
        name: (
            "event",
            [row[name] for row in rows],
            {"units": "bytes", "long_name": f"pool memory {name.replace('_', ', ')}"},
        )
        for name in _COUNTS
    }
    columns = [asdict(event) for event in events]
    coordinates = {
        "time": ("event", [float(c["time"]) for c in columns], {"units": "s", "long_name": "time of the host's call"}),
        "kind": ("event", [c["kind"] for c in columns]),
        "stream": ("event", [-1 if c["stream"] is None else c["stream"] for c in columns]),
    }
    return xr.Dataset(variables, coordinates, attributes)
