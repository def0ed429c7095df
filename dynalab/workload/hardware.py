"""Hardware in numbers: what a GPU, its link to the host, the host's memory and a disk achieve, last and cost.

Every number is a named field with a source; what no data sheet or measurement gives is called an assumption and can be
replaced by keyword. Bandwidths name their endpoints and count the payload once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal, overload

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, ValidationInfo

from dynalab.errors import ConfigError, did_you_mean, unknown
from dynalab.spec import Spec
from dynalab.units import parse_bandwidth, parse_duration, parse_size
from dynalab.workload.hardware_table import ALIASES, ASSUMED, FACTS
from dynalab.workload.models import Counts, ModelSpec

#: Bandwidths that a machine's tiers can be measured for.
MEASURED: Final = ("d2h", "h2d", "host_to_disk", "disk_to_host")


def _parsed(parse: Callable[..., Any]) -> BeforeValidator:
    return BeforeValidator(lambda value, info: _with_name(parse, value, info))


def _with_name(parse: Callable[..., Any], value: object, info: ValidationInfo) -> Any:
    return parse(value, field=info.field_name)


Size = Annotated[int, _parsed(parse_size), Field(gt=0)]
Bandwidth = Annotated[float, _parsed(parse_bandwidth)]
Duration = Annotated[float, _parsed(parse_duration)]
Price = Annotated[float, Field(ge=0)]


class HardwareSpec(Spec):
    """One serving instance: `gpus` equal GPUs in one host, its memory and its disks.

    Sizes, bandwidths and durations may be given as text ("141GB", "50GB/s", "80us"). The fields are described in
    ``HardwareSpec.model_fields[name].description``; where a value comes from is told by `source`.

    Examples
    --------
    >>> h100 = hardware_spec("h100-sxm", gpus=2)
    >>> h100.load_seconds(64 * 2**20, "host") < h100.load_seconds(64 * 2**20, "disk")
    True
    """

    _what: ClassVar[str] = "hardware"

    name: str = Field(min_length=1, description="name of the GPU and its form factor")
    gpus: int = Field(default=1, ge=1, le=1024, description="GPUs that share one model (tensor parallel degree)")
    peak_flops: float = Field(gt=0, description="dense bf16 tensor FLOP/s of one GPU (no sparsity)")
    mfu: float = Field(
        default=0.5, gt=0, le=1, description="share of peak_flops that a long prefill achieves, by the count of PaLM"
    )
    hbm_bytes: Size = Field(description="memory of one GPU in bytes (GB of the data sheet as 10**9)")
    hbm_bandwidth: Bandwidth = Field(description="device memory bandwidth of one GPU in bytes/s, read plus written")
    d2h: Bandwidth = Field(
        description="achieved device-to-host bandwidth of one GPU in bytes/s, one direction at a time"
    )
    h2d: Bandwidth = Field(
        description="achieved host-to-device bandwidth of one GPU in bytes/s, one direction at a time"
    )
    link_latency: Duration = Field(
        default=20e-6, description="seconds to start one batched copy between host and device"
    )
    host_memory_bandwidth: Bandwidth = Field(
        default=250e9, description="host memory bandwidth in bytes/s that all transfers of the instance share"
    )
    disks: int = Field(default=1, ge=1, le=1024, description="equal disks that the cache is striped over")
    disk_to_host: Bandwidth = Field(default=6.8e9, description="sequential read bandwidth of one disk in bytes/s")
    host_to_disk: Bandwidth = Field(default=5.6e9, description="sequential write bandwidth of one disk in bytes/s")
    disk_latency: Duration = Field(default=100e-6, description="seconds to the first byte of a read from a disk")
    disk_path: Literal["staged", "direct"] = Field(
        default="staged", description="disk to GPU through host memory, or directly (GPUDirect Storage)"
    )
    disk_bytes: Size = Field(default=7_680_000_000_000, description="capacity of one disk in bytes, for its endurance")
    disk_dwpd: float = Field(default=1.0, gt=0, description="rated drive writes per day over the warranty")
    disk_warranty_years: float = Field(default=5.0, gt=0, description="years that disk_dwpd is rated for")
    price_hbm: Price = Field(default=300.0, description="US$ per GiB of GPU memory: a GPU's price over its memory")
    price_host: Price = Field(default=8.0, description="US$ per GiB of host memory")
    price_disk: Price = Field(default=0.12, description="US$ per GiB of disk")
    sources: dict[str, str] = Field(default_factory=dict, description="where values come from, by field")

    def source(self, field: str) -> str:
        """Tell where the value of a field comes from: data sheet, measurement, assumption or the caller."""
        if field not in type(self).model_fields:
            raise ConfigError(
                f"hardware: {field!r} is no field of it; write one of {', '.join(type(self).model_fields)}"
            )
        return self.sources.get(field) or ASSUMED.get(field) or "given by the caller"

    def fitted(self, model: ModelSpec, kv_bytes: int = 0) -> HardwareSpec:
        """Return this machine with enough GPUs for a model: a power of two, at least as many as it has.

        Weights are taken at 2 bytes per parameter, and a tenth of each GPU's memory is left for activations.

        Parameters
        ----------
        model : ModelSpec
        kv_bytes : int
            GPU memory for KV blocks, all GPUs together.

        Examples
        --------
        >>> from dynalab.workload import hardware_spec, model_spec
        >>> hardware_spec("h100-sxm").fitted(model_spec("llama-3-70b"), kv_bytes=40 * 2**30).gpus
        4
        """
        needed = (2 * model.total_params + kv_bytes) / (0.9 * self.hbm_bytes)
        gpus = self.gpus
        while gpus < needed:
            gpus *= 2
        if gpus == self.gpus:
            return self
        why = f"derived: the weights of {model.name} in bf16 and the KV blocks need {needed:.1f} of them"
        return self.model_copy(update={"gpus": gpus, "sources": {**self.sources, "gpus": why}})

    def with_measured(self, bandwidths: Mapping[str, float], sources: Mapping[str, str]) -> HardwareSpec:
        """Return this machine with bandwidths that were measured, in place of a data sheet's or an assumption.

        Parameters
        ----------
        bandwidths : mapping of str to float
            Bytes/s, the payload counted once, by field: ``d2h`` and ``h2d`` of one GPU, ``host_to_disk`` and
            ``disk_to_host`` of one disk. Others stay as they are.
        sources : mapping of str to str
            What `source` tells of each; also of a field whose value stays, if there is more to say about it.

        Raises
        ------
        ConfigError
            If another field is given, or a value is not above zero.

        Examples
        --------
        >>> from dynalab.workload import hardware_spec
        >>> mine = hardware_spec("h100-sxm").with_measured({"h2d": 4.1e10}, {"h2d": "measured: 2 MiB blocks"})
        >>> mine.h2d, mine.source("h2d"), mine.d2h
        (41000000000.0, 'measured: 2 MiB blocks', 50000000000.0)
        """
        for field in (*bandwidths, *sources):
            if field not in MEASURED:
                raise unknown("measured", field, MEASURED)
        told = {**dict.fromkeys(bandwidths, "measured"), **sources}
        return _replaced(self, {**bandwidths, "sources": told}) if told else self

    @property
    def achieved_flops(self) -> float:
        """FLOP/s that a prefill achieves on all GPUs together."""
        return self.peak_flops * self.mfu * self.gpus

    @property
    def disk_endurance_bytes(self) -> float:
        """Bytes that may be written to the disks over their warranty."""
        return self.disk_dwpd * self.disk_bytes * self.disks * 365 * self.disk_warranty_years

    def load_bandwidth(self, path: str) -> float:
        """Bytes per second into the GPUs' memory: the slowest part of the way, all parts working at once.

        Parameters
        ----------
        path : {"host", "disk"}
            The tier that holds the blocks. Every GPU loads its own share over its own link; host memory is shared by
            all, and crossed twice (written, read) by what is staged from disk.
        """
        links = self.h2d * self.gpus
        if path == "host":
            return min(links, self.host_memory_bandwidth)
        if path == "disk":
            disks = self.disk_to_host * self.disks
            return (
                min(disks, links) if self.disk_path == "direct" else min(disks, links, self.host_memory_bandwidth / 2)
            )
        raise ConfigError(f"path: {path!r} is not a tier to load from; write 'host' or 'disk'")

    @overload
    def load_seconds(self, nbytes: int, path: str) -> float: ...
    @overload
    def load_seconds(self, nbytes: Counts, path: str) -> npt.NDArray[np.float64]: ...
    def load_seconds(self, nbytes: int | Counts, path: str) -> float | npt.NDArray[np.float64]:
        """Seconds to bring `nbytes` of cached blocks into GPU memory in one batch: latency + bytes / bandwidth.

        Parameters
        ----------
        nbytes : int or ndarray
            Bytes of the whole instance, all GPUs together; loading nothing takes no time.
        path : {"host", "disk"}
        """
        bandwidth = self.load_bandwidth(path)
        size = np.asarray(nbytes, dtype=np.float64)
        if not np.all(np.isfinite(size)) or np.any(size < 0):
            raise ConfigError(f"nbytes: {nbytes!r} is not a size; write bytes of zero or more")
        latency = self.link_latency + (self.disk_latency if path == "disk" else 0.0)
        seconds = np.where(size > 0, latency + size / bandwidth, 0.0)
        return float(seconds) if seconds.ndim == 0 else seconds

    @overload
    def prefill_seconds(self, model: ModelSpec, new_tokens: int, cached_tokens: int = 0) -> float: ...
    @overload
    def prefill_seconds(
        self, model: ModelSpec, new_tokens: Counts, cached_tokens: int | Counts = 0
    ) -> npt.NDArray[np.float64]: ...
    def prefill_seconds(
        self, model: ModelSpec, new_tokens: int | Counts, cached_tokens: int | Counts = 0
    ) -> float | npt.NDArray[np.float64]:
        """Seconds to compute `new_tokens` behind `cached_tokens`: `ModelSpec.prefill_flops` over `achieved_flops`.

        This is the work of a prefill in a busy batch. A lone prefill of few tokens takes longer, since every weight is
        read whatever the number of tokens; engine overheads are not counted either.
        """
        flops = model.prefill_flops(np.asarray(new_tokens), cached_tokens) / self.achieved_flops
        return float(flops) if np.ndim(flops) == 0 else flops


#: The known GPUs by name; see `dynalab.workload.hardware_table` for their facts.
HARDWARE: Final[Mapping[str, HardwareSpec]] = MappingProxyType(
    {name: HardwareSpec(name=name, **facts) for name, facts in FACTS.items()}
)


def hardware_spec(
    hardware: str | os.PathLike[str] | Mapping[str, Any] | HardwareSpec = "h100-sxm", **overrides: Any
) -> HardwareSpec:
    """Find a GPU by its name in the table, or describe one, and replace what is different on the machine at hand.

    Parameters
    ----------
    hardware : str, path, dict or HardwareSpec
        A name of `HARDWARE` in any case of letters, the fields of a spec, or a YAML or JSON file with them. Fields may
        name a known GPU as ``base`` and give only what differs.
    **overrides
        Fields of `HardwareSpec`; sizes, bandwidths and durations as numbers or text.

    Raises
    ------
    ConfigError
        If there is no such GPU (with the closest names), or a field does not exist or has an absurd value.

    Examples
    --------
    >>> hardware_spec("H100", gpus=4, h2d="25GB/s").h2d
    25000000000.0
    """
    if isinstance(hardware, HardwareSpec):
        return _replaced(hardware, overrides)
    if isinstance(hardware, Mapping):
        fields = dict(hardware)
        base = fields.pop("base", None)
        return (
            HardwareSpec(**{**fields, **overrides}) if base is None else hardware_spec(base, **{**fields, **overrides})
        )
    if not isinstance(hardware, str | os.PathLike) or not str(hardware).strip():
        raise ConfigError(f"hardware: {hardware!r} is not a GPU; write a name such as 'h100-sxm' or a file of fields")
    text = os.fspath(hardware)
    name = text.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")
    name = ALIASES.get(name, name)
    if name in HARDWARE:
        return _replaced(HARDWARE[name], overrides)
    if isinstance(hardware, os.PathLike) or Path(text).suffix in (".yaml", ".yml", ".json"):
        return hardware_spec(_read_fields(Path(text)), **overrides)
    close = did_you_mean(name, [*HARDWARE, *ALIASES], cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ConfigError(
        f"hardware: {text!r} is not in the table; {hint}any other GPU: pass a YAML file of HardwareSpec's fields, "
        f"such as 'base: h100-sxm' and what differs (known: {', '.join(sorted(HARDWARE))})"
    )


def _replaced(spec: HardwareSpec, overrides: Mapping[str, Any]) -> HardwareSpec:
    if not overrides:
        return spec
    given = dict.fromkeys(set(overrides) - {"sources"}, "given by the caller")
    sources = {**spec.sources, **given, **overrides.get("sources", {})}
    return HardwareSpec(**{**dict(spec), **overrides, "sources": sources})


def _read_fields(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a YAML file of HardwareSpec's fields"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())}); repair it") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: holds no fields; write lines such as 'base: h100-sxm' and 'h2d: 25GB/s'")
    return fields
