"""Facts about GPUs and their hosts, each with its source, and the sources of the values that all share.

Data-sheet memory sizes are read as 10**9 bytes per GB; the driver of an 80 GB GPU reports a few percent more.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

#: Where the defaults of `HardwareSpec` come from.
ASSUMED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gpus": "default: one GPU",
        "mfu": "assumption: 0.4 to 0.6 is usual for long bf16 prefills on data-centre GPUs",
        "link_latency": "assumption: launch and pointer upload of one batched copy, 10 to 50 us",
        "host_memory_bandwidth": "assumption: one socket with 8 channels of DDR5-4800 (307 GB/s peak) at about 80%",
        "disks": "default: one disk",
        "disk_to_host": "assumption: data sheet class of a 7.68 TB read-intensive PCIe 4.0 x4 NVMe drive",
        "host_to_disk": "assumption: data sheet class of a 7.68 TB read-intensive PCIe 4.0 x4 NVMe drive",
        "disk_latency": "assumption: random read of an NVMe drive, 80 to 120 us",
        "disk_path": "default: staged, as Dynamo's block manager does without GPUDirect Storage",
        "disk_bytes": "assumption: the commonest size of a data-centre NVMe drive",
        "disk_dwpd": "assumption: read-intensive NVMe drives are rated for 1 drive write per day",
        "disk_warranty_years": "assumption: the usual warranty of data-centre drives",
        "price_hbm": "assumption: about 30,000 US$ for a GPU of 80 to 141 GB; replace by your own",
        "price_host": "assumption: registered DDR5; prices move by a factor of three, replace by your own",
        "price_disk": "assumption: data-centre TLC NVMe; replace by your own",
    }
)

_PCIE5: Final = "measured on H100: ~50 GB/s, 79% of the 63.0 GB/s usable on PCIe 5.0 x16 (vLLM blog, 2026-01-08)"
_PCIE5_LIKE: Final = "assumption: as measured on H100 over the same PCIe 5.0 x16, ~50 GB/s (vLLM blog, 2026-01-08)"
_PCIE4: Final = "assumption: 79% of the 31.5 GB/s usable on PCIe 4.0 x16, the share measured on PCIe 5.0"
_C2C: Final = "assumption: as measured on GB300's NVLink-C2C, 192 GB/s host to device (SGLang pull request 40278)"
_DDR4: Final = "assumption: 8 channels of DDR4-3200 (205 GB/s peak) at about 80%"
_GRACE: Final = "assumption: Grace's LPDDR5X, 512 GB/s by its data sheet, at about 80%"


def _gpu(tflops: float, gigabytes: int, memory: float, sheet: str, **more: tuple[float, str]) -> dict[str, Any]:
    """Fields of one GPU: dense bf16 TFLOP/s, memory in GB, its bandwidth in GB/s, each with its source."""
    values: dict[str, tuple[Any, str]] = {
        "peak_flops": (tflops * 1e12, sheet),
        "hbm_bytes": (gigabytes * 10**9, sheet),
        "hbm_bandwidth": (memory * 1e9, sheet),
        **more,
    }
    return {
        **{field: value for field, (value, _) in values.items()},
        "sources": {"name": sheet, **{field: source for field, (_, source) in values.items()}},
    }


def _link(gb_per_s: float, source: str) -> dict[str, tuple[float, str]]:
    """Both directions of a symmetric link."""
    return {"d2h": (gb_per_s * 1e9, source), "h2d": (gb_per_s * 1e9, source)}


#: Fields of `HardwareSpec` by name; what is not said here is its default.
FACTS: Final[Mapping[str, dict[str, Any]]] = MappingProxyType(
    {
        "a100-80gb": _gpu(
            312,
            80,
            2039,
            "NVIDIA A100 80GB SXM data sheet (624 TFLOP/s are with sparsity)",
            host_memory_bandwidth=(160e9, _DDR4),
            **_link(25, _PCIE4),
        ),
        "h100-sxm": _gpu(
            989.4, 80, 3350, "NVIDIA H100 SXM data sheet (1,979 TFLOP/s are with sparsity)", **_link(50, _PCIE5)
        ),
        "h200-sxm": _gpu(
            989.4, 141, 4800, "NVIDIA H200 SXM data sheet (1,979 TFLOP/s are with sparsity)", **_link(50, _PCIE5_LIKE)
        ),
        "b200": _gpu(
            2250,
            180,
            7700,
            "NVIDIA HGX B200 data sheet, an eighth of it (4.5 PFLOP/s are with sparsity)",
            **_link(50, _PCIE5_LIKE),
        ),
        "gb200": _gpu(
            2500,
            186,
            8000,
            "NVIDIA GB200 NVL72 data sheet, a 72nd of it (5 PFLOP/s are with sparsity)",
            host_memory_bandwidth=(400e9, _GRACE),
            **_link(192, _C2C),
        ),
        "l40s": _gpu(362, 48, 864, "NVIDIA L40S data sheet (733 TFLOP/s are with sparsity)", **_link(25, _PCIE4)),
        "l4": _gpu(121, 24, 300, "NVIDIA L4 data sheet (242 TFLOP/s are with sparsity)", **_link(25, _PCIE4)),
        "a10g": _gpu(
            70,
            24,
            600,
            "NVIDIA A10G data sheet (140 TFLOP/s are with sparsity)",
            host_memory_bandwidth=(160e9, _DDR4),
            **_link(25, _PCIE4),
        ),
    }
)

#: Other ways to write the names.
ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "a100": "a100-80gb",
        "a100-sxm": "a100-80gb",
        "a100-sxm4-80gb": "a100-80gb",
        "h100": "h100-sxm",
        "h100-80gb-hbm3": "h100-sxm",
        "h200": "h200-sxm",
        "b200-sxm": "b200",
        "gb200-nvl72": "gb200",
    }
)
