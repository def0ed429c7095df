"""What a write rate does to a disk: terabytes per day, drive writes per day, years to its rated endurance."""

from __future__ import annotations

from dataclasses import dataclass

from dynalab.errors import ConfigError
from dynalab.workload import HardwareSpec

_DAY = 86_400.0
_YEAR = 365.25 * _DAY


@dataclass(frozen=True)
class Wear:
    """Endurance used by a steady write rate.

    Attributes
    ----------
    bytes_per_second : float
        Mean write rate to the disk tier, all disks together.
    tb_per_day : float
        The same in 10**12 bytes per day.
    dwpd : float
        Drive writes per day: bytes per day over the capacity of all disks of the tier.
    rated_dwpd : float
        What the disks are rated for.
    years : float
        Until the rated endurance is used up; infinite without writes.
    """

    bytes_per_second: float
    tb_per_day: float
    dwpd: float
    rated_dwpd: float
    years: float

    @property
    def within_rating(self) -> bool:
        """True if the disks last at least their warranty."""
        return self.dwpd <= self.rated_dwpd


def wear(write_bytes: float, duration: float, hardware: HardwareSpec) -> Wear:
    """Return the wear of writing `write_bytes` in every `duration` seconds.

    Host bytes are counted: write amplification inside the drive comes on top, and is near 1 for the large sequential
    writes of KV blocks.

    Parameters
    ----------
    write_bytes : float
        Bytes written to the disk tier within the trace.
    duration : float
        Seconds that the trace spans.
    hardware : HardwareSpec
        Capacity, count and rating of the disks.

    Examples
    --------
    Field measurement: 12.3 TB in 59 minutes on one 7.68 TB drive.

    >>> from dynalab.workload import hardware_spec
    >>> round(wear(12.3e12, 59 * 60, hardware_spec("h100-sxm")).dwpd, 1)
    39.1
    """
    if duration <= 0:
        raise ConfigError(f"duration: {duration} s; a write rate needs a trace that spans some time")
    rate = write_bytes / duration
    capacity = hardware.disk_bytes * hardware.disks
    years = hardware.disk_endurance_bytes / rate / _YEAR if rate > 0 else float("inf")
    return Wear(rate, rate * _DAY / 1e12, rate * _DAY / capacity, hardware.disk_dwpd, years)
