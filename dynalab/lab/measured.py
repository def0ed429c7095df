"""Bandwidths that `dynalab bench tiers` measured, for simulations that would otherwise take a data sheet's."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dynalab.errors import ConfigError
from dynalab.units import format_size

if TYPE_CHECKING:
    import xarray as xr

    from dynalab.workload import HardwareSpec

#: Fields of a `HardwareSpec`, and the direction that each is measured in.
LINKS: Final = {"d2h": "device_to_host", "h2d": "host_to_device"}
DISKS: Final = {"host_to_disk": "host_to_disk", "disk_to_host": "disk_to_host"}
#: What to do with the link of a measurement whose device was host-emulated.
GPU_ONLY, ANY_DEVICE = "gpu", "any"
_DIMS: Final = ("direction", "block_bytes", "batch", "layout")
_CURE: Final = "give a file that `dynalab bench tiers` has written"


@dataclass(frozen=True)
class Measured:
    """A file of measured bandwidths.

    Attributes
    ----------
    path : pathlib.Path
    sha256 : str
        Of the file's bytes.
    dataset : xarray.Dataset
        As :func:`dynalab.tiers.bench.bench_tiers` returns it.
    """

    path: Path
    sha256: str
    dataset: xr.Dataset

    @property
    def emulated(self) -> bool:
        """Whether the device was the stand-in for a GPU."""
        return str(self.dataset.attrs.get("device_label", "")) == "host-emulated"

    @property
    def facts(self) -> dict[str, str]:
        """What was measured, where and when, for the attributes of results."""
        attrs = self.dataset.attrs
        machine = f"{attrs.get('machine_cpu', 'unknown CPU')}, {attrs.get('machine_cores', '?')} cores"
        return {
            "measured_file": self.path.name,
            "measured_sha256": self.sha256,
            "measured_at": str(attrs.get("measured_at", "unknown")),
            "measured_machine": machine,
            "measured_device": self.device,
        }

    @property
    def device(self) -> str:
        """Name of the device: "host-emulated" without a GPU, "none" where none was measured."""
        label = str(self.dataset.attrs.get("device_label", ""))
        if label in ("", "host-emulated"):
            return label or "none"
        return f"{self.dataset.attrs.get('device', 'GPU')} ({label})"

    def applied(self, spec: HardwareSpec, block_bytes: int, link: str = GPU_ONLY) -> HardwareSpec:
        """Return hardware with the bandwidths measured here, each with its source; the rest stays as it is.

        A value is the median at the block size nearest to `block_bytes`, in the best batch, block-first where that was
        measured.

        Parameters
        ----------
        spec : HardwareSpec
        block_bytes : int
            Bytes of a block in the simulation.
        link : {"gpu", "any"}
            Take the link between device and host from a GPU's measurement only, or from a host-emulated device too,
            which then is called that.
        """
        values: dict[str, float] = {}
        sources: dict[str, str] = {}
        attrs = self.dataset.attrs
        for field, direction in (LINKS | DISKS).items():
            unfit = ""
            if field in LINKS and self.emulated and link != ANY_DEVICE:
                unfit = "a host-emulated device"
            elif field in DISKS:
                unfit = no_disk(attrs)
            found = self._best(direction, block_bytes)
            if found is None:
                continue
            if unfit:
                sources[field] = f"{spec.source(field)}; the measurement in {self.path.name} is of {unfit}: not used"
                continue
            values[field], how = found
            on = f"{self.facts['measured_machine']}, device {self.device}" if field in LINKS else _disk(attrs)
            sources[field] = f"measured here: {how}, {on}, {self.facts['measured_at']} ({self.path.name})"
        return spec.with_measured(values, sources)

    def _best(self, direction: str, block_bytes: int) -> tuple[float, str] | None:
        """Return the bandwidth of a direction and how it was reached; None if it was not measured."""
        found = self.dataset.bandwidth
        if direction not in found.direction.values:
            return None
        found = found.sel(direction=direction).dropna("block_bytes", how="all")
        if found.sizes["block_bytes"] == 0:
            return None
        orders = [str(order) for order in found.layout.values]
        order = "block_first" if "block_first" in orders else orders[0]
        distance = np.abs(np.log(found.block_bytes.values / block_bytes))
        found = found.sel(layout=order).isel(block_bytes=int(distance.argmin()))
        if bool(found.isnull().all()):
            return None
        batch = int(found.batch[int(np.nanargmax(found.values))])
        size = format_size(int(found.block_bytes))
        return float(found.sel(batch=batch)), f"{size} blocks, {order.replace('_', '-')}, in batches of {batch}"


def no_disk(attrs: Mapping[Any, Any]) -> str:
    """Say what was measured in place of a disk: memory, the page cache, or "" if it was a disk.

    Examples
    --------
    >>> no_disk({"disk_direct_io": 1, "disk_file_system": "tmpfs"}), no_disk({"disk_direct_io": 0})
    ('memory', 'the page cache')
    """
    if attrs.get("disk_file_system") in ("tmpfs", "ramfs"):
        return "memory"
    return "" if attrs.get("disk_direct_io", 0) else "the page cache"


def _disk(attrs: dict[Any, Any]) -> str:
    kind = f"{attrs.get('disk_file_system', 'file system')} at {attrs.get('disk_path', 'unknown path')}"
    return f"{attrs.get('machine_cpu', 'unknown CPU')}, {kind} taken as one disk"


def read_measured(path: str | os.PathLike[str]) -> Measured:
    """Read a file that ``dynalab bench tiers`` has written.

    Raises
    ------
    ConfigError
        If it cannot be read, or holds no bandwidths of tiers.
    """
    place, sha256, dataset = load_measured(path, "measured", _CURE)
    found = dataset.get("bandwidth")
    if found is None or set(found.dims) != set(_DIMS) or not set(_DIMS) <= set(dataset.coords):
        raise ConfigError(f"measured: {str(path)!r} holds no bandwidths of tiers; {_CURE}")
    sound = found.dtype.kind == "f" and found.attrs.get("units") == "B/s" and dataset.block_bytes.dtype.kind in "iu"
    values = np.asarray(found.values[np.isfinite(found.values)] if sound else [], np.float64)
    if not values.size or values.min() <= 0 or int(dataset.block_bytes.min()) <= 0:
        raise ConfigError(f"measured: {str(path)!r} holds bandwidths that are none (in B/s, above 0); {_CURE}")
    return Measured(place, sha256, dataset)


def load_measured(path: str | os.PathLike[str], field: str, cure: str) -> tuple[Path, str, xr.Dataset]:
    """Read a netCDF file of measurements: its path, the sha256 of its bytes, and what it holds.

    Parameters
    ----------
    path : path-like
    field, cure : str
        Name of the parameter and what to do, for errors.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    place = Path(path)
    try:
        data = place.read_bytes()
    except OSError as error:
        raise ConfigError(f"{field}: {str(path)!r} cannot be read ({error.strerror}); {cure}") from None
    import xarray as xr

    try:
        dataset = xr.load_dataset(io.BytesIO(data), engine="h5netcdf")
    except Exception as error:  # whatever readers of a broken file come upon
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{field}: {str(path)!r} is not a netCDF file ({why:.100}); {cure}") from None
    return place, hashlib.sha256(data).hexdigest(), dataset
