"""The parameters of a report: all checked before anything starts, and hashed so that equal runs share a folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from dynalab.errors import ConfigError, TraceError
from dynalab.lab.provenance import canonical_json
from dynalab.units import parse_duration, parse_size

if TYPE_CHECKING:
    from dynalab.lab.measured import Measured
    from dynalab.lab.measured_net import MeasuredNet
    from dynalab.workload import HardwareSpec, ModelSpec, Trace

_TIERS = ("device", "host", "disk")


class ReportParameters(BaseModel):
    """What ``notebooks/tuning_report.ipynb`` is run with: the same names, in the same order, as its first code cell.

    Parameters
    ----------
    trace : str
        A file, folder or glob of one public format, or the name of a preset of the synthesiser.
    trace_format : str
        ``"auto"``, or the name of a format that :func:`dynalab.workload.read_trace` knows.
    trace_sha256 : str
        What the trace must hash to; empty: whatever it does.
    model, hardware : str
        Names, or files, that :func:`~dynalab.workload.model_spec` and :func:`~dynalab.workload.hardware_spec` know.
    measured : str
        A file that ``dynalab bench tiers`` has written, whose bandwidths take the place of the hardware's; empty: none.
    measured_link : {"gpu", "any"}
        Take the link between GPU and host from a measurement on a GPU only, or on a host-emulated device too.
    measured_net : str
        A file that ``dynalab bench net`` has written: what a request costs on a connection; empty: assumptions.
    device, host, disk : str
        Bytes of KV cache per tier, as in "40GiB". At least one must be above zero.
    block_tokens : int
        Block size to re-block the trace to; 0 keeps the trace's own.
    policies : list of str, "default" or "all"
        Which policies to compare.
    target_hit_ratio : float
        Wanted hit ratio in (0, 1]; 0 looks for the knee of the curve.
    budget : float
        Money for the tiers, in the currency of the hardware's prices; 0 sets no limit.
    duration_s, rate : float
        Length in seconds and requests/s of a synthetic trace; 0 takes the preset's own. Only for presets.
    itl_ms : float
        Milliseconds from one output token to the next, while a request holds its permit; "20ms" is read, too.
    speedup : float
        Arrivals are made this many times faster.
    seed : int
        Of every random choice.

    Raises
    ------
    ConfigError
        For a value that cannot be used; the message names the field, the value and what would be right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trace: str = "conversation"
    trace_format: str = "auto"
    trace_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    model: str = "llama-3-70b"
    hardware: str = "h100-sxm"
    measured: str = ""
    measured_link: Literal["gpu", "any"] = "gpu"
    measured_net: str = ""
    device: str = "40GiB"
    host: str = "512GiB"
    disk: str = "4TB"
    block_tokens: int = Field(default=0, ge=0, le=1 << 20)
    policies: list[str] | Literal["default", "all"] = "default"
    target_hit_ratio: float = Field(default=0.0, ge=0, le=1)
    budget: float = Field(default=0.0, ge=0)
    duration_s: float = Field(default=0.0, ge=0)
    rate: float = Field(default=0.0, ge=0)
    itl_ms: float = Field(default=20.0, ge=0)
    speedup: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=1 << 63)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _config_error(error) from None

    @field_validator(*_TIERS, mode="before")
    @classmethod
    def _size(cls, value: object, info: ValidationInfo) -> str:
        parse_size(value, field=str(info.field_name))
        return str(value).strip()

    @field_validator("duration_s", mode="before")
    @classmethod
    def _duration(cls, value: object) -> float:
        return parse_duration(value, field="duration_s")

    @field_validator("itl_ms", mode="before")
    @classmethod
    def _milliseconds(cls, value: object) -> object:
        # A number is one of milliseconds, as the name says; a text with a unit may name any.
        if isinstance(value, str) and re.search(r"[a-zµμ]\s*$", value, re.IGNORECASE):
            return round(1e3 * parse_duration(value, field="itl_ms"), 9)
        return value

    @field_validator("policies", mode="before")
    @classmethod
    def _policy_names(cls, value: object) -> object:
        from dynalab.kv.policies import get_policy

        names = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
        names = [part.strip().lower() for name in names for part in str(name).split(",") if part.strip()]
        if names in (["default"], ["all"]):
            return names[0]
        if not names:
            raise ConfigError(f"policies: {value!r} names none; write default, all, or names such as lru,s3fifo")
        return [get_policy(name).name for name in dict.fromkeys(names)]

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        from dynalab.workload import model_spec

        model_spec(value)
        return os.path.abspath(value) if os.path.isfile(value) else value

    @field_validator("hardware")
    @classmethod
    def _hardware(cls, value: str) -> str:
        from dynalab.workload import hardware_spec

        hardware_spec(value)
        return os.path.abspath(value) if os.path.isfile(value) else value

    @field_validator("measured")
    @classmethod
    def _measured(cls, value: str) -> str:
        from dynalab.lab.measured import read_measured

        if not value:
            return value
        read_measured(value)
        return os.path.abspath(value)

    @field_validator("measured_net")
    @classmethod
    def _measured_net(cls, value: str) -> str:
        from dynalab.lab.measured_net import read_measured_net

        if not value:
            return value
        read_measured_net(value)
        return os.path.abspath(value)

    @model_validator(mode="after")
    def _consistent(self) -> ReportParameters:
        if not any(self.tier_bytes().values()):
            raise ConfigError("device, host, disk: all are 0; give at least one tier a size such as device=40GiB")
        if self.target_hit_ratio and self.budget:
            raise ConfigError(
                f"target_hit_ratio: {self.target_hit_ratio:g} and budget {self.budget:g} ask two questions; give one"
            )
        return self

    def tier_bytes(self) -> dict[str, int]:
        """Bytes of each tier."""
        return {name: parse_size(getattr(self, name), field=name) for name in _TIERS}

    def measurement(self) -> Measured | None:
        """Return what was measured, if that is to be used."""
        from dynalab.lab.measured import read_measured

        return read_measured(self.measured) if self.measured else None

    def net_measurement(self) -> MeasuredNet | None:
        """Return what was measured of the network, if anything."""
        from dynalab.lab.measured_net import read_measured_net

        return read_measured_net(self.measured_net) if self.measured_net else None

    def machine(self, model: ModelSpec, block_bytes: int) -> HardwareSpec:
        """Return the hardware with GPUs enough for a model, and with the bandwidths that were measured.

        Parameters
        ----------
        model : ModelSpec
        block_bytes : int
            Bytes of a block of the trace.
        """
        from dynalab.workload import hardware_spec

        machine = hardware_spec(self.hardware).fitted(model, self.tier_bytes()["device"])
        found = self.measurement()
        return machine if found is None else found.applied(machine, block_bytes, self.measured_link)

    def resolve(self) -> tuple[ReportParameters, Trace]:
        """Read the trace whole, check that the report can be made of it, and pin its sha256.

        Returns
        -------
        parameters : ReportParameters
            With ``trace`` absolute if it is a file, and ``trace_sha256`` filled in.
        trace : Trace
            As the notebook will see it.

        Raises
        ------
        TraceError, ConfigError
            If the trace cannot be read, has no block ids, is another one than ``trace_sha256`` says, or if one block of
            it does not fit into a tier.
        """
        from dynalab.workload import PRESETS, model_spec

        raw = self._raw_trace()
        trace = self._prepared(raw)
        spec = model_spec(self.model)
        block = spec.block_bytes(int(trace.block_tokens or 0))
        for name, size in self.tier_bytes().items():
            if 0 < size < block:
                raise ConfigError(
                    f"{name}: {getattr(self, name)!r} holds no block of {trace.block_tokens} tokens of {spec.name}; "
                    f"give {block} bytes or more, or 0 for no such tier"
                )
        place = self.trace if self.trace in PRESETS else os.path.abspath(self.trace)
        return self.model_copy(update={"trace": place, "trace_sha256": raw.sha256}), trace

    def load_trace(self) -> Trace:
        """Read or synthesise the trace, re-block it and speed it up, as the parameters say."""
        return self._prepared(self._raw_trace())

    def _raw_trace(self) -> Trace:
        from dynalab.workload import PRESETS, read_trace, synthesize

        if self.trace in PRESETS:
            trace = synthesize(self.trace, self.duration_s or None, self.rate or None, self.seed)
        else:
            if not any(char in self.trace for char in "*?[") and not os.path.exists(self.trace):
                raise TraceError(f"no such file, and no preset of that name ({', '.join(PRESETS)})", path=self.trace)
            for name in ("duration_s", "rate"):
                if getattr(self, name):
                    raise ConfigError(
                        f"{name}: {getattr(self, name):g} is for presets ({', '.join(PRESETS)}), not for the file "
                        f"{self.trace!r}; speedup changes the rate of a file"
                    )
            trace = read_trace(self.trace, format=self.trace_format)
        if self.trace_sha256 and trace.sha256 != self.trace_sha256:
            raise TraceError(f"sha256 is {trace.sha256}, not {self.trace_sha256}: another trace", path=self.trace)
        return trace

    def _prepared(self, trace: Trace) -> Trace:
        trace.require_blocks()
        if self.block_tokens:
            trace = trace.reblock(self.block_tokens)
        return trace if self.speedup == 1 else trace.speedup(self.speedup)

    def digest(self) -> str:
        """Ten hex digits that are equal for equal results: contents, not paths, sizes in bytes, not as written.

        Call it on resolved parameters: it needs ``trace_sha256``.
        """
        values = self.model_dump() | self.tier_bytes()
        for name in ("model", "hardware", "measured", "measured_net"):
            if os.path.isfile(values[name]):
                values[name] = "sha256:" + hashlib.sha256(Path(values[name]).read_bytes()).hexdigest()
        del values["trace"]
        if not self.measured:
            del values["measured"], values["measured_link"]
        if not self.measured_net:
            del values["measured_net"]
        return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:10]

    def default_name(self) -> str:
        """Name of the folder for these parameters: the trace's file name without endings, or the preset."""
        stem = Path(self.trace).name.split(".")[0]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "report"


def _config_error(error: ValidationError) -> ConfigError:
    """First complaint of pydantic, in our words: field, value, what is wrong."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    field = str(first["loc"][0]) if first["loc"] else "parameters"
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{field}: no such parameter; there are {', '.join(ReportParameters.model_fields)}")
    return ConfigError(f"{field}: {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}")
