"""Sums of log-normals as length and time models, and evenly spread random numbers to draw from them.

Token counts and think times of chat traffic are heavy-tailed with a few humps (a one-line question, a pasted page, a
whole book). A weighted sum of log-normal parts describes them with three numbers per hump.

One hour of such traffic is a small sample of a heavy tail: with independent draws, the cache hit ratio of a twin
wanders by several points from seed to seed. The draws here are therefore *stratified* (one per equally likely slice,
in random order), which leaves every marginal distribution unchanged and takes most of that wandering away.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import ndtri

Floats = npt.NDArray[np.float64]

#: Nothing in a trace is longer than this: lengths must fit int32 with room to add.
MAX_TOKENS = 10_000_000

#: Each part is cut this far from both ends of its distribution, so that its draws are finite.
_CUT = 1e-6


class LogNormals(BaseModel):
    """A weighted sum of log-normal distributions, cut to a range.

    A plain number stands for that constant, a pair for one part ``(median, sigma)``.

    Attributes
    ----------
    parts : tuple of (weight, median, sigma)
        Weights need not add up to 1. `median` is in the unit of the quantity (tokens or seconds), `sigma` is the
        standard deviation of the natural logarithm; 0 makes the part a constant.
    low, high : float
        Draws outside are moved to the nearer end.

    Examples
    --------
    >>> LogNormals.model_validate(300).sample(np.array([0.1, 0.9]))
    array([300., 300.])
    >>> LogNormals(parts=((1.0, 100.0, 0.5),)).sample(np.array([0.5])).round(6)
    array([100.])
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[
        tuple[
            Annotated[float, Field(gt=0, allow_inf_nan=False)],
            Annotated[float, Field(ge=0, le=MAX_TOKENS)],
            Annotated[float, Field(ge=0, le=5)],
        ],
        ...,
    ] = Field(min_length=1)
    low: float = Field(default=0.0, ge=0, le=MAX_TOKENS)
    high: float = Field(default=1_000_000.0, ge=0, le=MAX_TOKENS)

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"parts": ((1.0, value, 0.0),)}
        if isinstance(value, (tuple, list)):
            if len(value) == 2 and all(isinstance(v, (int, float)) for v in value):
                return {"parts": ((1.0, value[0], value[1]),)}
            return {"parts": value}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) lies above high ({self.high:g})")
        return self

    @property
    def largest(self) -> float:
        """The largest value that is ever drawn."""
        reach = max(median * float(np.exp(sigma * ndtri(1 - _CUT))) for _, median, sigma in self.parts)
        return min(max(reach, self.low), self.high)

    def sample(self, u: Floats) -> Floats:
        """Turn numbers that are uniform on (0, 1) into draws.

        Parameters
        ----------
        u : ndarray of float64, any shape
            Evenly spread numbers give evenly spread draws: the parts follow each other on the unit interval.

        Returns
        -------
        ndarray of float64, same shape
        """
        weights = np.array([part[0] for part in self.parts])
        medians = np.array([part[1] for part in self.parts])
        sigmas = np.array([part[2] for part in self.parts])
        edges = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
        part = np.clip(np.searchsorted(edges, u, side="right") - 1, 0, len(weights) - 1)
        within = (u - edges[part]) / (edges[part + 1] - edges[part])
        z = ndtri(np.clip(within, _CUT, 1 - _CUT))
        return np.clip(medians[part] * np.exp(sigmas[part] * z), self.low, self.high)

    def tokens(self, u: Floats) -> npt.NDArray[np.int64]:
        """Like `sample`, rounded to whole tokens."""
        return np.rint(self.sample(u)).astype(np.int64)


def spread(rng: np.random.Generator, n: int, *, stratified: bool = True) -> Floats:
    """Draw `n` uniform numbers, one in each of `n` equal slices and in random order unless told otherwise."""
    u = rng.random(n)
    return (rng.permutation(n) + u) / n if stratified else u


def alongside(rng: np.random.Generator, key: npt.NDArray[np.generic], dims: int, *, stratified: bool = True) -> Floats:
    """Draw points in the unit cube, one for each key, spread evenly among the keys of every size.

    In order of the keys (equal ones in random order) the points follow the additive recurrence with the generalised
    golden ratio, randomly shifted. Any few neighbours are then spread evenly, so that products of the key and a draw
    (prompt length times number of turns, say) average out as the draws themselves do.

    Parameters
    ----------
    rng : numpy.random.Generator
    key : ndarray, shape (n,)
    dims : int
        Draws per key.
    stratified : bool
        False draws independently.

    Returns
    -------
    ndarray of float64, shape (dims, n)
    """
    n = key.size
    if not stratified:
        return rng.random((dims, n))
    golden = 2.0
    for _ in range(40):  # fixed point of x ** (dims + 1) = x + 1
        golden = (1.0 + golden) ** (1.0 / (dims + 1))
    steps = golden ** -np.arange(1.0, dims + 1)
    points = np.empty((dims, n))
    points[:, np.lexsort((rng.random(n), key))] = (rng.random(dims)[:, None] + np.arange(n) * steps[:, None]) % 1.0
    return points


def zipf_pick(u: Floats, n: int, exponent: float) -> npt.NDArray[np.int64]:
    """Pick one of `n` items, the i-th (from 1) with a probability proportional to ``i ** -exponent``."""
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    edges = np.cumsum(weights) / weights.sum()
    return np.minimum(np.searchsorted(edges, u, side="right"), n - 1).astype(np.int64)
