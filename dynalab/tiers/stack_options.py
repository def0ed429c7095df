"""Read what a stack is given: tiers, hashes, and settings for all tiers or for each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, unknown
from dynalab.kv.tiering.rules import TIERS
from dynalab.tiers.directory import Filter
from dynalab.tiers.memory import MemoryTier
from dynalab.tiers.tier import StorageTier

_KINDS = (MemoryTier, MemoryTier, StorageTier)
_CLASSES = ("DeviceTier", "HostTier", "DiskTier")


def check_tiers(*tiers: object) -> None:
    """Refuse what is no tier, stands in another tier's place, or was closed."""
    for place, cls, kind, given in zip(TIERS, _CLASSES, _KINDS, tiers, strict=True):
        if given is None and place != "device":
            continue
        if not isinstance(given, kind) or given.name != place:
            raise ConfigError(
                f"{place}: {given!r:.80} is no {place} tier; give a {cls}; the order is {', '.join(TIERS)}"
            )
        given.require_open()


def check_count(field: str, value: object, least: int) -> int:
    """Return a number of blocks."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{field}: {value!r} is not a number of blocks; give {least} or more")
    return int(value)


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


def as_parent(value: object) -> int:
    """Return the hash of the block before others, 0 for none."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**64:
        raise ConfigError(f"parent: {value!r} is no sequence hash; give one of 64 bits, or 0 for none")
    return int(value)


def per_tier(field: str, given: str | Mapping[str, str], default: str) -> tuple[str, str, str]:
    """Return one name per tier, from one for all or from a mapping."""
    if isinstance(given, str):
        return given, given, given
    if not isinstance(given, Mapping):
        raise ConfigError(f'{field}: {given!r} is no name; give one for all tiers, or {{"host": "{default}"}}')
    for name in given:
        if name not in TIERS:
            raise unknown(field, name, TIERS)
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
    if not isinstance(given, Mapping):
        raise ConfigError(f'admission: {given!r} is no filter; give a name, a Filter, or {{"disk": "frequency"}}')
    for name in given:
        if name not in ("host", "disk"):
            raise ConfigError(f"admission: {name!r}; filters stand in front of host and disk only, name one of these")
    chosen = {name: Filter(value) if isinstance(value, str) else value for name, value in given.items()}
    return Filter(), chosen.get("host", usual), chosen.get("disk", usual)
