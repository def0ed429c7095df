"""`synthesize`: from a preset's name to a trace."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynalab.errors import ConfigError
from dynalab.workload.synth.arrivals import arrival_times
from dynalab.workload.synth.blocks import arrival_order, build_blocks
from dynalab.workload.synth.lengths import Floats
from dynalab.workload.synth.names import suggestion
from dynalab.workload.synth.presets import PRESETS
from dynalab.workload.synth.sessions import Turns, draw_turns
from dynalab.workload.synth.spec import TRAFFIC_FIELDS, WorkloadSpec
from dynalab.workload.trace import Trace


def synthesize(
    preset: str | WorkloadSpec = "conversation",
    duration: float | str | None = None,
    rate: float | None = None,
    seed: int = 0,
    arrivals: str | None = None,
    **overrides: Any,
) -> Trace:
    """Make a trace of synthetic requests whose blocks are shared as those of real ones are.

    Parameters
    ----------
    preset : str or WorkloadSpec
        ``conversation`` (statistical twin of the Mooncake conversation trace), ``shared_prompt``, ``agent``,
        ``document``, ``mixed``, or a specification of your own.
    duration : float or str, optional
        Seconds, or text such as ``"1h"``; the preset's own where left out.
    rate : float, optional
        Mean requests per second.
    seed : int
        The same seed and parameters give the same trace, bit for bit.
    arrivals : str, optional
        ``poisson``, ``gamma``, ``sinusoidal``, ``bursty`` or ``constant``.
    **overrides
        Any other field of :class:`WorkloadSpec`.

    Returns
    -------
    Trace
        With block ids. Its attrs hold ``preset``, ``seed`` and all ``parameters``.

    Raises
    ------
    ConfigError
        For a preset, process or parameter that does not exist, or a value that cannot be used.

    Notes ----- Arrival times follow the chosen process exactly. Sessions (with their own gaps between turns) decide
    only which request comes when: the i-th of their wanted times takes the i-th arrival.

    Examples
    --------
    >>> trace = synthesize("conversation", duration="60s", seed=1)
    >>> trace.block_tokens, trace.equals(synthesize("conversation", duration=60, seed=1))
    (512, True)
    """
    base = _specification(preset)
    given = {"duration": duration, "rate": rate, "arrivals": arrivals}
    spec = base.override(**{name: value for name, value in given.items() if value is not None}, **overrides)
    _check_mixture(base, spec, overrides)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed: {seed!r} cannot be used; give a whole number from 0 up")
    rng = np.random.default_rng(int(seed))
    times = arrival_times(spec, rng)
    turns = _mix(spec, times, rng) if spec.mixture else draw_turns(spec, times, times.size, rng)
    order = arrival_order(turns.time)
    raw_ids, offsets = build_blocks(turns, order, spec.block_tokens)
    return Trace.from_columns(
        times,
        turns.input_tokens[order],
        turns.output_tokens[order],
        raw_ids,
        offsets,
        spec.block_tokens,
        source=f"synthetic: {spec.name}, {spec.duration:g} s at {spec.rate:g} requests/s, {spec.arrivals}, seed {seed}",
        attrs={
            "format": "synthetic",
            "preset": spec.name,
            "seed": int(seed),
            "parameters": spec.model_dump(mode="json"),
        },
    )


def _specification(preset: str | WorkloadSpec) -> WorkloadSpec:
    if isinstance(preset, WorkloadSpec):
        return preset
    if preset not in PRESETS:
        raise ConfigError(f"preset: {preset!r} does not exist; {suggestion(preset, PRESETS)}")
    return PRESETS[preset]


def _check_mixture(base: WorkloadSpec, spec: WorkloadSpec, overrides: dict[str, Any]) -> None:
    """Refuse parameters that a mixture would silently ignore, and parts that do not exist."""
    if not spec.mixture:
        if base.mixture:
            raise ConfigError(f"mixture: {spec.mixture} is empty; give shares of presets such as {base.mixture}")
        return
    if not base.mixture:
        raise ConfigError(
            f"mixture: preset {spec.name!r} has sessions of its own; use preset 'mixed' for mixture={spec.mixture}"
        )
    for field in overrides:
        if field not in TRAFFIC_FIELDS:
            raise ConfigError(
                f"{field}: {overrides[field]!r} would change nothing, a mixture takes its sessions from its presets; "
                "synthesize the parts with their own parameters and join them with Trace.merge"
            )
    plain = [name for name, other in PRESETS.items() if not other.mixture]
    for name in spec.mixture:
        if name not in plain:
            raise ConfigError(f"mixture: {name!r} cannot be a part; {suggestion(name, plain)}")


def _mix(spec: WorkloadSpec, times: Floats, rng: np.random.Generator) -> Turns:
    """Draw each part's requests in its share; together they take the arrivals of the whole."""
    shares = np.cumsum(list(spec.mixture.values()))
    edges = np.rint(np.concatenate([[0.0], shares / shares[-1]]) * times.size).astype(np.int64)
    parts = []
    for name, count in zip(spec.mixture, np.diff(edges), strict=True):
        part = PRESETS[name].override(
            duration=spec.duration, block_tokens=spec.block_tokens, stratified=spec.stratified
        )
        if count:
            parts.append(draw_turns(part, times, int(count), rng))
    return Turns.concatenate(parts)
