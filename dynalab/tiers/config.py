"""How a stack of tiers is set up: by keyword, or by the environment variables that Dynamo's users set already."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, NamedTuple, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from dynalab.errors import ConfigError, did_you_mean
from dynalab.spec import Spec, as_seconds
from dynalab.units import parse_duration, parse_size

_log = logging.getLogger(__name__)
_PREFIX: Final = "DYN_KVBM_"


def _size(value: object, info: ValidationInfo) -> int | None:
    return None if value is None else parse_size(value, field=str(info.field_name))


_Size = Annotated[int | None, BeforeValidator(_size), Field(gt=0)]
_Blocks = Annotated[int | None, Field(ge=1, strict=True)]
_Count = Annotated[int, Field(ge=1, strict=True)]


class StackConfig(Spec):
    """What a stack of tiers is made of, and how it moves blocks.

    Sizes may be given as text ("8GiB"), durations too ("5s"). The fields are described in
    ``StackConfig.model_fields[name].description``.

    Examples
    --------
    >>> config = StackConfig(host_bytes="8GiB", disk_blocks=50_000, disk_dir="/var/tmp/kv")
    >>> config.host_bytes, config.max_concurrent_transfers
    (8589934592, 4)
    >>> StackConfig.from_env({"DYN_KVBM_CPU_CACHE_GB": "0.5"}).host_bytes
    500000000
    """

    _what: ClassVar[str] = "stack"

    host_bytes: _Size = Field(default=None, description="size of the host tier in bytes; None: no host tier")
    host_blocks: _Blocks = Field(default=None, description="blocks of the host tier, instead of host_bytes")
    disk_bytes: _Size = Field(default=None, description="size of the disk tier in bytes; None: no disk tier")
    disk_blocks: _Blocks = Field(default=None, description="blocks of the disk tier, instead of disk_bytes")
    disk_dir: Path = Field(default=Path("/tmp"), description="directory of the disk tier's files")
    disk_zerofill: bool = Field(
        default=False, description="write zeros where the file system cannot reserve space (fallocate)"
    )
    disk_direct_io: bool = Field(default=True, description="bypass the page cache (O_DIRECT)")
    disk_offload_filter: bool = Field(
        default=True, description="let only blocks that are used again enter the disk tier"
    )
    host_min_priority: int = Field(
        default=0,
        ge=0,
        le=100,
        strict=True,
        description="offload to the host stops at the first block of a sequence with a priority below this",
    )
    max_concurrent_transfers: _Count = Field(default=4, description="batches in flight per path")
    max_transfer_batch_size: _Count = Field(default=16, description="blocks in a batch")
    cache_stats_max_requests: _Count = Field(default=1000, description="requests in the window of hit rates")
    cache_stats_log_interval_s: Annotated[float, BeforeValidator(as_seconds)] = Field(
        default=5.0, description="seconds between two log lines about hit rates"
    )

    @model_validator(mode="after")
    def _one_size_each(self) -> Self:
        for tier in ("host", "disk"):
            nbytes, blocks = getattr(self, f"{tier}_bytes"), getattr(self, f"{tier}_blocks")
            if nbytes is not None and blocks is not None:
                raise ConfigError(f"stack: both {tier}_bytes={nbytes} and {tier}_blocks={blocks} given; give one")
        return self

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **fields: Any) -> Self:
        """Read the variables by which Dynamo's KV block manager is set up.

        ===================================================== ============================== =========================
        variable                                              field                          value
        ===================================================== ============================== =========================
        DYN_KVBM_CPU_CACHE_GB                                 host_bytes                     10**9 bytes; "0.5" counts
        DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS                host_blocks                    above 0: wins over GB
        DYN_KVBM_DISK_CACHE_GB                                disk_bytes                     10**9 bytes; "0.5" counts
        DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS               disk_blocks                    above 0: wins over GB
        DYN_KVBM_DISK_CACHE_DIR                               disk_dir                       a directory
        DYN_KVBM_DISK_ZEROFILL_FALLBACK                       disk_zerofill                  on if it is set at all
        DYN_KVBM_DISK_DISABLE_O_DIRECT                        disk_direct_io                 off if it is set at all
        DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER                  disk_offload_filter            true or 1: off
        DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY             host_min_priority              0 to 100
        DYN_KVBM_MAX_CONCURRENT_TRANSFERS                     max_concurrent_transfers       from 1 up
        DYN_KVBM_MAX_TRANSFER_BATCH_SIZE                      max_transfer_batch_size        from 1 up
        DYN_KVBM_TRANSFER_BATCH_SIZE                          the same, its older name       the one above wins
        DYN_KVBM_CACHE_STATS_MAX_REQUESTS                     cache_stats_max_requests       from 1 up
        DYN_KVBM_CACHE_STATS_LOG_INTERVAL_SECS                cache_stats_log_interval_s     seconds
        ===================================================== ============================== =========================

        Parameters
        ----------
        environ : mapping of str to str
        **fields
            Fields of this class; they win over variables.

        Returns
        -------
        StackConfig
            A variable that is unset or blank leaves the default.

        Raises
        ------
        ConfigError
            If a value is none: names the variable, the value and what would be right. (Dynamo warns and takes the
            default, so that a slip in the size of a cache shows as a low hit rate, weeks later.) A variable of another
            part of Dynamo is left alone; one that looks like a slip is logged.
        """
        found: dict[str, Any] = {}
        for rule in _RULES:
            text = environ.get(rule.variable)
            if text is None or not (text.strip() or rule.read in (_present, _present_means_off)):
                continue
            value = rule.read(rule.variable, text.strip())
            if value is not None:
                found[rule.field] = value
        for tier in ("host", "disk"):
            if f"{tier}_blocks" in found:
                found.pop(f"{tier}_bytes", None)
            if {f"{tier}_bytes", f"{tier}_blocks"} & fields.keys():
                for name in ("bytes", "blocks"):
                    found.pop(f"{tier}_{name}", None)
        _warn_of_slips(environ)
        return cls(**(found | fields))


def _gigabytes(variable: str, text: str) -> int | None:
    try:
        return parse_size(f"{text} GB") or None
    except ConfigError:
        raise ConfigError(
            f"{variable}: {text!r} is not a number of GB (10**9 bytes); write 40 or 0.5, without unit, or 0 for none"
        ) from None


def _whole(least: int, most: int | None = None) -> Callable[[str, str], int]:
    def read(variable: str, text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text) or not least <= int(text) <= (int(text) if most is None else most):
            span = f"from {least} up" if most is None else f"from {least} to {most}"
            raise ConfigError(f"{variable}: {text!r} is not a whole number {span}; write one, or unset it")
        return int(text)

    return read


def _blocks(variable: str, text: str) -> int | None:
    return _whole(0)(variable, text) or None


def _interval(variable: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ConfigError:
        raise ConfigError(f"{variable}: {text!r} is not a number of seconds; write 5, or unset it") from None


def _truth(variable: str, text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise ConfigError(f"{variable}: {text!r} is neither true nor false; write true, 1, false or 0")
    return text.lower() in ("true", "1")


def _untruth(variable: str, text: str) -> bool:
    return not _truth(variable, text)


def _present(variable: str, text: str) -> bool:
    if text.lower() in ("false", "0", "no", "off"):
        _log.warning("%s=%s switches it on, as any value does; unset it to switch it off", variable, text)
    return True


def _present_means_off(variable: str, text: str) -> bool:
    return not _present(variable, text)


class _Rule(NamedTuple):
    """A variable, the field that it sets, and how its text is read; None from the reader leaves the default."""

    variable: str
    field: str
    read: Callable[[str, str], Any]


# A later rule wins over an earlier one for the same field.
_RULES: Final = tuple(
    _Rule(_PREFIX + variable, field, read)
    for variable, field, read in (
        ("CPU_CACHE_GB", "host_bytes", _gigabytes),
        ("CPU_CACHE_OVERRIDE_NUM_BLOCKS", "host_blocks", _blocks),
        ("DISK_CACHE_GB", "disk_bytes", _gigabytes),
        ("DISK_CACHE_OVERRIDE_NUM_BLOCKS", "disk_blocks", _blocks),
        ("DISK_CACHE_DIR", "disk_dir", lambda _, text: Path(text)),
        ("DISK_ZEROFILL_FALLBACK", "disk_zerofill", _present),
        ("DISK_DISABLE_O_DIRECT", "disk_direct_io", _present_means_off),
        ("DISABLE_DISK_OFFLOAD_FILTER", "disk_offload_filter", _untruth),
        ("HOST_OFFLOAD_PREFIX_MIN_PRIORITY", "host_min_priority", _whole(0, 100)),
        ("MAX_CONCURRENT_TRANSFERS", "max_concurrent_transfers", _whole(1)),
        ("TRANSFER_BATCH_SIZE", "max_transfer_batch_size", _whole(1)),
        ("MAX_TRANSFER_BATCH_SIZE", "max_transfer_batch_size", _whole(1)),
        ("CACHE_STATS_MAX_REQUESTS", "cache_stats_max_requests", _whole(1)),
        ("CACHE_STATS_LOG_INTERVAL_SECS", "cache_stats_log_interval_s", _interval),
    )
)


def _warn_of_slips(environ: Mapping[str, str]) -> None:
    """Log variables that are not read and come so close to one that is that they are meant for it."""
    known = [rule.variable for rule in _RULES]
    for variable in environ:
        if variable.startswith(_PREFIX) and variable not in known:
            close = did_you_mean(variable, known, most=1, cutoff=0.9)
            if close:
                _log.warning("%s is not read; did you mean %s?", variable, close[0])
