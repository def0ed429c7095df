"""What a benchmark of the network measures, and with how much: checked before anything is started."""

from __future__ import annotations

import math
import resource
from importlib.util import find_spec
from itertools import product
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from dynalab.errors import ConfigError
from dynalab.spec import Spec, as_list, as_seconds
from dynalab.units import format_duration, format_size, parse_size

#: Largest payload, and most bytes of payloads under way at once: a client, a server and the kernel hold them.
MOST_PAYLOAD: Final = 31 << 20
MOST_UNDER_WAY: Final = 1 << 30
#: Rounds that are made whatever time they take.
LEAST_ROUNDS: Final = 3
#: Files that a process has open beside its connections.
_OTHER_FILES: Final = 64


def _payload(value: object) -> int:
    return parse_size(value, field="payload_bytes")


def _loops() -> tuple[Any, ...]:
    return ("asyncio", "uvloop") if find_spec("uvloop") else ("asyncio",)


_Count = Annotated[int, Field(ge=1, le=4096)]
_Counts = Annotated[tuple[_Count, ...], BeforeValidator(as_list), Field(min_length=1)]


class Case(NamedTuple):
    """One combination of everything that is varied; the names are the dimensions of the result."""

    loop: str
    payload_bytes: int
    concurrency: int
    pool_size: int
    channel_buffer: int
    server_concurrency: int
    handler_seconds: float


class NetBenchPlan(Spec):
    """What to measure, and with how much: every combination of the values given.

    Sizes, times and lists may be given as text ("64,4KiB", "1ms"). The fields are described in
    ``NetBenchPlan.model_fields[name].description``.

    Raises
    ------
    ConfigError
        If a value cannot be used: names it, and what would be right.

    Examples
    --------
    >>> plan = NetBenchPlan(loops="asyncio", payload_bytes="64,4KiB", concurrency=16, pool_size="1,8")
    >>> plan.payload_bytes, len(plan.cases)
    ((64, 4096), 4)
    """

    _what: ClassVar[str] = "bench"

    loops: Annotated[tuple[Literal["asyncio", "uvloop"], ...], BeforeValidator(as_list), Field(min_length=1)] = Field(
        default_factory=_loops,
        description="kinds of event loop, the same on both sides: asyncio, uvloop; by default those installed",
    )
    payload_bytes: Annotated[
        tuple[Annotated[int, BeforeValidator(_payload), Field(ge=1, le=MOST_PAYLOAD)], ...],
        BeforeValidator(as_list),
        Field(min_length=1),
    ] = Field(default=(64, 4 << 10, 64 << 10, 1 << 20), description="bytes of a request, and of its reply")
    concurrency: _Counts = Field(default=(1, 16, 256), description="callers that each have one request under way")
    pool_size: _Counts = Field(default=(1, 8), description="most connections of the client (DYN_TCP_POOL_SIZE)")
    channel_buffer: _Counts = Field(
        default=(64,), description="most requests in flight on a connection (DYN_TCP_CHANNEL_BUFFER)"
    )
    server_concurrency: _Counts = Field(
        default=(64,), description="handlers that the server runs at a time (DYN_TCP_WORKER_POOL_SIZE)"
    )
    handler_seconds: Annotated[
        tuple[Annotated[float, BeforeValidator(as_seconds), Field(le=60)], ...],
        BeforeValidator(as_list),
        Field(min_length=1),
    ] = Field(default=(0.0,), description="how long a handler waits before it replies [s]")
    seconds: Annotated[float, BeforeValidator(as_seconds), Field(gt=0)] = Field(
        default=35.0, description="time to spend; three rounds are made in any case"
    )
    seed: int = Field(default=0, ge=0, description="of the payloads' bytes and of the order of the cases")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        most, callers = max(self.payload_bytes), max(self.concurrency)
        if most * callers > MOST_UNDER_WAY:
            raise ConfigError(
                f"payload_bytes, concurrency: {callers} requests of {format_size(most)} would be under way at once, "
                f"more than {format_size(MOST_UNDER_WAY)}; give less of either"
            )
        if "uvloop" in self.loops and find_spec("uvloop") is None:
            raise ConfigError("loops: uvloop is not installed; pip install 'dynalab[uvloop]', or give asyncio")
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files != resource.RLIM_INFINITY and callers + _OTHER_FILES > files:
            raise ConfigError(
                f"concurrency: {callers} callers of the bare echo need a connection each, and this process may open "
                f"{files} files; raise ulimit -n, or give fewer"
            )
        least = LEAST_ROUNDS * sum(map(_least_seconds, self.cases))
        if least > self.seconds:
            raise ConfigError(
                f"handler_seconds: one request of every caller in every case takes {format_duration(least)} in all; "
                "give the benchmark more time, or less to handlers"
            )
        return self

    @property
    def cases(self) -> list[Case]:
        """Every combination."""
        names = ("loops", *Case._fields[1:])
        return [Case(*values) for values in product(*(getattr(self, name) for name in names))]


def _least_seconds(case: Case) -> float:
    """Return what one request of every caller takes at least."""
    at_once = min(case.server_concurrency, case.pool_size * case.channel_buffer)
    return case.handler_seconds * math.ceil(case.concurrency / at_once)
