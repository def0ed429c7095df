"""Read what a stack is given: hashes, and settings for all tiers or for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.kv.tiering.rules import TIERS
from dynalab.tiers.directory import Filter


def as_hashes(values: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Return sequence hashes as an array."""
    given = np.asarray(values)
    if given.dtype == np.uint64 and given.ndim == 1:
        hashes = np.ascontiguousarray(given)
    elif given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ConfigError(f"hashes: {given.dtype} of shape {given.shape}; give one row of 64-bit sequence hashes")
    else:
        hashes = given.astype(np.uint64)
    if hashes.size and not hashes.all():
        raise ConfigError("hashes: 0 stands for no block; hash with another salt")
    return hashes


def per_tier(field: str, given: str | Mapping[str, str], default: str) -> tuple[str, str, str]:
    """Return one name per tier, from one for all or from a mapping."""
    if isinstance(given, str):
        return given, given, given
    strangers = [name for name in given if name not in TIERS]
    if strangers:
        raise ConfigError(f"{field}: {strangers[0]!r} is not a tier; choose from {', '.join(TIERS)}")
    device, host, disk = (given.get(name, default) for name in TIERS)
    return device, host, disk


def filters_of(
    given: str | Filter | Mapping[str, str | Filter] | None, mode: str, admit_after: int, host: bool, disk: bool
) -> tuple[Filter, Filter, Filter]:
    """Return the filter in front of each tier; a single one stands in front of the lowest."""
    usual = Filter("after", admit_after) if mode == "selective" else Filter()
    if given is None:
        given = {}
    if isinstance(given, str | Filter):
        given = {"disk" if disk else "host": given}
    names: Iterable[str] = given
    for name in names:
        if name not in ("host", "disk"):
            raise ConfigError(f"admission: {name!r}; filters stand in front of host and disk only")
    chosen = {name: Filter(value) if isinstance(value, str) else value for name, value in given.items()}
    return Filter(), chosen.get("host", usual), chosen.get("disk", usual)
