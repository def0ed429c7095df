"""Where a result came from: versions, machine, trace and parameters as attributes of the data set that holds it.

Nothing here reads a clock or a host name, so that the same run on the same machine gives the same bytes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynalab import __version__
from dynalab.errors import ReportError

if TYPE_CHECKING:
    import xarray as xr

    from dynalab.workload.trace import Trace

#: What a netCDF attribute can hold without a change of meaning.
Attribute = str | int | float

#: Compression of every numeric variable: level 4 halves typical curves and costs milliseconds.
_COMPRESSION = {"zlib": True, "complevel": 4}


def provenance(trace: Trace | None = None, **parameters: Any) -> dict[str, Attribute]:
    """Tell what made a result, as netCDF-safe attributes.

    Parameters
    ----------
    trace : Trace, optional
        The trace that was replayed; its source, sha256 and number of requests are recorded.
    **parameters
        Whatever else is needed to make the result again: kept as JSON with sorted keys under ``parameters``.

    Returns
    -------
    dict
        Plain strings and numbers: ``dynalab_version``, ``dynalab_revision`` (git, with ``-dirty`` where files were
        changed; empty outside a checkout), ``*_version`` of the libraries that numbers depend on, ``machine_*``,
        ``device`` (the GPU's name, or ``"none"``), ``trace_*`` and ``parameters``.

    Examples
    --------
    >>> provenance(seed=3)["parameters"]
    '{"seed": 3}'
    """
    attrs: dict[str, Attribute] = {"dynalab_version": __version__, "dynalab_revision": git_revision()}
    attrs |= library_versions() | machine_facts()
    if trace is not None:
        attrs |= {"trace_source": trace.source, "trace_sha256": trace.sha256, "trace_requests": len(trace.arrival)}
    attrs["parameters"] = canonical_json(parameters, spaced=True)
    return attrs


def stamp(dataset: xr.Dataset, trace: Trace | None = None, **parameters: Any) -> xr.Dataset:
    """Return `dataset` with :func:`provenance` in its attributes; attributes it already has are kept.

    Examples
    --------
    >>> import xarray as xr
    >>> stamp(xr.Dataset(attrs={"device": "host-emulated"}), seed=3).attrs["device"]
    'host-emulated'
    """
    return dataset.assign_attrs(provenance(trace, **parameters) | dataset.attrs)


def save_dataset(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a data set as netCDF-4 through h5netcdf, whole or not at all, with the same bytes for the same content.

    Attributes that netCDF cannot hold are made plain first: None becomes an empty string, a bool an integer, and a
    mapping, a mixed list or any other object its JSON text. Numeric variables are compressed.

    Parameters
    ----------
    dataset : xarray.Dataset
    path : path-like
        The file to write; an older one is replaced only when the new one is complete.

    Returns
    -------
    pathlib.Path
        `path`, absolute.

    Raises
    ------
    ReportError
        If the file cannot be written there.
    """
    target = Path(path).absolute()
    plain = dataset.assign_attrs({})
    plain.attrs = _plain_attrs(dataset.attrs)
    for name in plain.variables:
        plain[name].attrs = _plain_attrs(dataset[name].attrs)
    encoding = {
        name: _COMPRESSION
        for name, variable in plain.variables.items()
        if variable.dtype.kind in "biuf" and variable.ndim
    }
    try:
        # The temporary file lies beside the target, so that the rename stays within one file system.
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            draft = Path(scratch) / target.name
            plain.to_netcdf(draft, engine="h5netcdf", encoding=encoding)
            os.replace(draft, target)
    except OSError as error:
        raise ReportError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def canonical_json(value: Any, *, spaced: bool = False) -> str:
    """Write `value` as JSON that is the same for equal values: sorted keys, NumPy scalars and tuples made plain.

    Examples
    --------
    >>> import numpy as np
    >>> canonical_json({"b": np.int64(2), "a": (1.5, None)})
    '{"a":[1.5,null],"b":2}'
    """
    separators = (", ", ": ") if spaced else (",", ":")
    return json.dumps(value, sort_keys=True, separators=separators, default=_plain, ensure_ascii=False)


def library_versions() -> dict[str, Attribute]:
    """Versions of Python and of the libraries on which the numbers depend, without importing them."""
    from importlib.metadata import version

    names = ("numpy", "numba", "scipy", "pandas", "xarray")
    return {"python_version": platform.python_version(), **{f"{name}_version": version(name) for name in names}}


@cache
def _machine_facts() -> dict[str, Attribute]:
    return {
        "machine_cpu": _cpu_model(),
        "machine_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "machine_system": f"{platform.system()} {platform.machine()}",
        "device": _device_name(),
    }


def machine_facts() -> dict[str, Attribute]:
    """CPU model, cores that this process may use, operating system, and the device (GPU name, or ``"none"``)."""
    return dict(_machine_facts())


@cache
def git_revision() -> str:
    """Commit of the checkout that this very package lies in, ``-dirty`` if tracked files differ; else empty."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    # Optional locks off: telling a revision must never block somebody's commit.
    return _output(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        GIT_OPTIONAL_LOCKS="0",
    )


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Model", "Hardware"}:
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _device_name() -> str:
    """Name of the first NVIDIA GPU that the driver shows, without loading CUDA."""
    for facts in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                return value.strip()
    if shutil.which("nvidia-smi"):
        return _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]) or "none"
    return "none"


def _output(command: list[str], **environment: str) -> str:
    """First line that a command prints, or nothing if it fails: a missing fact must not stop a run."""
    try:
        done = subprocess.run(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0]


def _plain_attrs(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): _plain_attr(value) for name, value in attrs.items()}


def _plain_attr(value: Any) -> Any:
    import numpy as np

    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, str | int | float | np.number):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.ndim <= 1:
        return value
    if isinstance(value, list | tuple) and value and all(type(v) is type(value[0]) for v in value):
        # A row of one plain type is something netCDF has a form for; anything else becomes text below.
        if isinstance(value[0], str):
            return list(value)
        if isinstance(value[0], int | float) and not isinstance(value[0], bool):
            return np.asarray(value)
    return canonical_json(value, spaced=True)


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)
