"""Workloads: request traces, their readers and synthesis, models and hardware in numbers.

Names are imported when they are first used, so that ``import dynalab.workload`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynalab.workload.hardware import HARDWARE, HardwareSpec, hardware_spec
    from dynalab.workload.models import MODELS, ModelSpec, model_spec
    from dynalab.workload.reading import read_trace
    from dynalab.workload.synth import PRESETS, synthesize
    from dynalab.workload.trace import Trace

__all__ = [
    "HARDWARE",
    "MODELS",
    "PRESETS",
    "HardwareSpec",
    "ModelSpec",
    "Trace",
    "hardware_spec",
    "model_spec",
    "read_trace",
    "synthesize",
]

_HOMES = {
    "Trace": "trace",
    "read_trace": "reading",
    "synthesize": "synth",
    "PRESETS": "synth",
    "ModelSpec": "models",
    "MODELS": "models",
    "model_spec": "models",
    "HardwareSpec": "hardware",
    "HARDWARE": "hardware",
    "hardware_spec": "hardware",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
