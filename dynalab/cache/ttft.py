"""Time to first token with and without reuse, and the length from which loading beats recomputing.

These are the times of an unloaded engine: no queue, no batching with other requests, the copies before the prefill
and not hidden behind it. They bound what a tier can save; the serving simulator adds the queue.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dynalab.workload import HardwareSpec, ModelSpec

_MAX_TOKENS = 1 << 20


def recompute_seconds(
    model: ModelSpec, hardware: HardwareSpec, input_tokens: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """Return the seconds to compute each prompt from scratch; `input_tokens` has shape (n_requests,)."""
    return np.asarray(hardware.prefill_seconds(model, input_tokens))


def ttft_seconds(
    model: ModelSpec,
    hardware: HardwareSpec,
    input_tokens: npt.NDArray[np.integer],
    device_tokens: npt.NDArray[np.integer],
    host_tokens: npt.NDArray[np.integer],
    disk_tokens: npt.NDArray[np.integer],
) -> npt.NDArray[np.float64]:
    """Return the seconds from arrival to the first token of each request, unloaded.

    ``prefill(new tokens behind the reused ones) + load(host) + load(disk)``. At least one token of every prompt is
    computed: the first output token needs its last hidden state.

    Parameters
    ----------
    model, hardware
    input_tokens : ndarray of int, shape (n_requests,)
    device_tokens, host_tokens, disk_tokens : ndarray of int, shape (n_requests,)
        Tokens reused from each tier.

    Returns
    -------
    ndarray of float64, shape (n_requests,)
    """
    reused = np.minimum(device_tokens + host_tokens + disk_tokens, input_tokens - 1)
    seconds = np.asarray(hardware.prefill_seconds(model, input_tokens - reused, reused))
    for path, tokens in (("host", host_tokens), ("disk", disk_tokens)):
        load = np.asarray(hardware.load_seconds(tokens * model.bytes_per_token, path))
        seconds = seconds + np.where(tokens > 0, load, 0.0)
    return seconds


def break_even_tokens(model: ModelSpec, hardware: HardwareSpec, path: str) -> float:
    """Return the shortest prefix that loads no slower than it computes.

    Parameters
    ----------
    model, hardware
    path : {"host", "disk"}

    Returns
    -------
    float
        Tokens; below it recomputing is faster. Infinite if loading never wins up to the model's longest context.

    Examples
    --------
    >>> from dynalab.workload import hardware_spec, model_spec
    >>> model = model_spec("llama-3-70b")
    >>> hardware = hardware_spec("h100-sxm").fitted(model)
    >>> break_even_tokens(model, hardware, "host") < break_even_tokens(model, hardware, "disk")
    True
    """
    longest = model.max_context or _MAX_TOKENS

    def wins(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        load = np.asarray(hardware.load_seconds(tokens * model.bytes_per_token, path))
        return load <= np.asarray(hardware.prefill_seconds(model, tokens))

    # Computing grows at least linearly and loading is linear plus a latency, so that loading, once ahead, stays ahead.
    low, high = 0, longest
    if not bool(wins(np.array([high]))[0]):
        return float("inf")
    while high - low > 1:
        middle = (low + high) // 2
        if bool(wins(np.array([middle]))[0]):
            high = middle
        else:
            low = middle
    return float(high)
