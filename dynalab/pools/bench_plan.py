"""What a benchmark of pools measures, and for how long."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field

from dynalab.spec import Spec, as_list, as_seconds

#: The kinds of pool: `SyncPool`, and `Pool` by the loop that it runs on.
KINDS: Final = ("threads", "asyncio", "uvloop")
_Counts = Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], BeforeValidator(as_list), Field(min_length=1)]


class PoolBenchPlan(Spec):
    """What to measure, and for how long.

    The time may be given as text ("10s"), lists too ("1,4,16"). The fields are described in
    ``PoolBenchPlan.model_fields[name].description``.

    Raises
    ------
    ConfigError
        If a value cannot be used: names it, and what would be right.

    Examples
    --------
    >>> PoolBenchPlan(threads="1,2", seconds="500ms").threads
    (1, 2)
    """

    _what: ClassVar[str] = "pool bench"

    kinds: Annotated[
        tuple[Literal["threads", "asyncio", "uvloop"], ...], BeforeValidator(as_list), Field(min_length=1)
    ] = Field(
        default_factory=lambda: tuple(kind for kind in KINDS if kind != "uvloop" or find_spec("uvloop")),
        description="threads (SyncPool), asyncio and uvloop (Pool on that loop); by default all that are installed",
    )
    items: _Counts = Field(default=(1, 8), description="values in the pool")
    threads: _Counts = Field(default=(1, 2, 4, 8, 16), description="threads that borrow at a time")
    tasks: _Counts = Field(default=(1, 4, 16, 64, 256), description="tasks that borrow at a time")
    seconds: Annotated[float, BeforeValidator(as_seconds), Field(gt=0)] = Field(
        default=10.0, description="time to spend; three rounds are made in any case"
    )
    seed: int = Field(default=0, ge=0, description="of the order of cases")
