"""Synthetic prefixes for traces that know only lengths: sessions that fit what was measured."""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort

import numpy as np

from dynalab.errors import ConfigError, TraceError
from dynalab.workload.synth.blocks import arrival_order, build_blocks
from dynalab.workload.synth.lengths import Floats, zipf_pick
from dynalab.workload.synth.sessions import Ints, Turns
from dynalab.workload.trace import Trace

#: Seconds that a user takes before the next turn: median and sigma of a log-normal. Shorter than the 129 s between
#: turns of the Mooncake conversation trace, since a session then still waits for a request that fits.
THINK_SECONDS = (60.0, 1.0)

#: A session that found no fitting request for this long (seconds) has ended.
PATIENCE_SECONDS = 1800.0


def with_prefixes(
    trace: Trace,
    *,
    block_tokens: int = 512,
    system_prompts: int = 8,
    system_tokens: int = 1024,
    turns: float = 3.5,
    seed: int = 0,
) -> Trace:
    """Give a trace without block ids (Azure, BurstGPT) synthetic ones.

    Requests are joined to sessions in order of arrival. After a request its session goes on with probability ``1 -
    1/turns``: it thinks for a while, then takes the first request whose prompt is at least as long as the last prompt
    and its answer, the best-fitting session first. Lengths and arrivals stay as they are.

    Parameters
    ----------
    trace : Trace
        Without block ids.
    block_tokens : int
        Tokens per block.
    system_prompts : int
        Number of system prompts; the i-th is chosen in proportion to 1/i. 0 for none.
    system_tokens : int
        Length of each; sessions whose first prompt is not longer have none.
    turns : float
        Mean turns per session that is aimed at. Fewer come true where few prompts are long enough to continue one;
        attrs tell how many did.
    seed : int

    Returns
    -------
    Trace
        With block ids, and attrs and source that say that they are synthetic.

    Raises
    ------
    TraceError
        If the trace has block ids already.
    ConfigError
        For a parameter that cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> bare = Trace.from_columns([0.0, 500.0], [600, 1400], [100, 100])
    >>> with_prefixes(bare, turns=1000, system_prompts=0).block_ids
    array([0, 1, 0, 2, 3], dtype=int32)
    """
    if trace.has_blocks:
        raise TraceError(
            f"{trace.source} has block ids of its own; use it as it is, synthetic prefixes would hide measured ones"
        )
    _check(
        block_tokens=(block_tokens, 1),
        system_prompts=(system_prompts, 0),
        system_tokens=(system_tokens, 0),
        seed=(seed, 0),
    )
    if isinstance(turns, bool) or not isinstance(turns, int | float) or not 1 <= turns < np.inf:
        raise ConfigError(f"turns: {turns!r} cannot be used; give the mean turns per session, a number from 1 up")
    rng = np.random.default_rng(seed)
    session = _join_sessions(trace, 1.0 - 1.0 / turns, rng)
    rows = np.argsort(session, kind="stable")  # session order; inside a session order of arrival
    first = np.ones(rows.size, np.bool_)
    first[1:] = session[rows[1:]] != session[rows[:-1]]
    starts = np.flatnonzero(first)
    prompt = trace.input_tokens[rows].astype(np.int64)

    system = np.full(starts.size, -1, np.int64)
    if system_prompts and system_tokens:
        chosen = zipf_pick(rng.random(starts.size), system_prompts, 1.0)
        system = np.where(prompt[starts] > system_tokens, chosen, -1)
    system_blocks = np.where(system >= 0, system_tokens // block_tokens, 0)
    per_row = np.cumsum(first) - 1
    shared = np.zeros(rows.size, np.int64)
    shared[1:] = np.where(first[1:], 0, prompt[:-1] // block_tokens)
    columns = Turns(
        first=first,
        input_tokens=prompt,
        output_tokens=trace.output_tokens[rows].astype(np.int64),
        shared=shared,
        system=system[per_row],
        document=np.full(rows.size, -1, np.int64),
        system_blocks=system_blocks[per_row],
        prefix_blocks=system_blocks[per_row],
        time=rows.astype(np.float64),
    )
    raw_ids, offsets = build_blocks(columns, arrival_order(columns.time), block_tokens)
    made = {
        "block_tokens": int(block_tokens),
        "system_prompts": int(system_prompts),
        "system_tokens": int(system_tokens),
        "turns": float(turns),
        "turns_achieved": trace.n_requests / starts.size,
        "seed": int(seed),
    }
    return Trace.from_columns(
        trace.arrival,
        trace.input_tokens,
        trace.output_tokens,
        raw_ids,
        offsets,
        int(block_tokens),
        source=f"{trace.source} + synthetic prefixes (seed {seed})",
        attrs={
            **trace.attrs,
            "prefixes": "synthetic: lengths and arrivals are the trace's, which blocks are shared is invented",
            "prefix_parameters": made,
            "source_sha256": trace.sha256,
        },
    )


def _join_sessions(trace: Trace, go_on: float, rng: np.random.Generator) -> Ints:
    """Return every request's session (numbered by first request)."""
    n = trace.n_requests
    continues = (rng.random(n) < go_on).tolist()
    ready: list[float] = (trace.arrival + _think(rng, n)).tolist()
    arrival: list[float] = trace.arrival.tolist()
    prompt: list[int] = trace.input_tokens.tolist()
    context: list[int] = (trace.input_tokens.astype(np.int64) + trace.output_tokens).tolist()
    session = list(range(n))
    thinking: list[tuple[float, int]] = []  # (ready at, last request), a heap
    waiting: list[tuple[int, int]] = []  # (tokens so far, last request), sorted
    for request in range(n):
        now = arrival[request]
        while thinking and thinking[0][0] <= now:
            last = heapq.heappop(thinking)[1]
            insort(waiting, (context[last], last))
        fit = bisect_right(waiting, (prompt[request], n)) - 1
        while fit >= 0 and ready[waiting[fit][1]] + PATIENCE_SECONDS < now:
            del waiting[fit]
            fit -= 1
        if fit >= 0:
            session[request] = session[waiting.pop(fit)[1]]
        if continues[request]:
            heapq.heappush(thinking, (ready[request], request))
    return np.array(session, np.int64)


def _think(rng: np.random.Generator, n: int) -> Floats:
    median, sigma = THINK_SECONDS
    return median * np.exp(sigma * rng.standard_normal(n))


def _check(**fields: tuple[object, int]) -> None:
    for name, (value, least) in fields.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < 2**31:
            raise ConfigError(f"{name}: {value!r} cannot be used; give a whole number from {least} up")
