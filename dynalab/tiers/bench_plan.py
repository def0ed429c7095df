"""What a benchmark of tiers measures, and with how much: checked before anything is taken from the machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dynalab.errors import ConfigError, TierFull
from dynalab.spec import Spec, as_list, as_seconds, as_size
from dynalab.tiers.bench_cases import layout_of
from dynalab.tiers.bench_limits import LARGE, PIECE
from dynalab.units import format_size, parse_size

BLOCK_SIZES: Final = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
BATCHES: Final = (1, 4, 16, 64)


def _block_size(value: object) -> int:
    size = parse_size(value, field="block_bytes")
    layout_of(size)
    return size


_Size = Annotated[int, BeforeValidator(as_size)]
_Count = Annotated[int, Field(ge=1, le=4096)]


class BenchPlan(Spec):
    """What to measure, and with how much.

    Sizes may be given as text ("512MiB"), the time too ("40s"). The fields are described in
    ``BenchPlan.model_fields[name].description``.

    Raises
    ------
    ConfigError
        If a value cannot be used: names it, and what would be right.
    TierFull
        If the disk has no room.

    Examples
    --------
    >>> BenchPlan(block_bytes="64KiB,1MiB", disk=0).block_bytes
    (65536, 1048576)
    """

    _what: ClassVar[str] = "bench"

    path: Path = Field(default=Path(), description="directory on the disk to measure")
    device: _Size = Field(default=512 << 20, description="bytes of the device tier; 0 for none")
    host: _Size = Field(default=256 << 20, gt=0, description="bytes of the host tier")
    disk: _Size = Field(default=2 << 30, description="bytes of the disk tier, shared out among block sizes; 0 for none")
    block_bytes: Annotated[
        tuple[Annotated[int, BeforeValidator(_block_size)], ...], BeforeValidator(as_list), Field(min_length=1)
    ] = Field(default=BLOCK_SIZES, description="sizes of a block, multiples of 4096")
    batches: Annotated[tuple[_Count, ...], BeforeValidator(as_list), Field(min_length=1)] = Field(
        default=BATCHES, description="blocks that a mover takes at once (DYN_KVBM_MAX_TRANSFER_BATCH_SIZE)"
    )
    layouts: Annotated[
        tuple[Literal["block_first", "layer_first"], ...], BeforeValidator(as_list), Field(min_length=1)
    ] = Field(
        default=("block_first", "layer_first"),
        description="layouts of the device's and the host's blocks; the disk's are always block-first",
    )
    gpu: int | str | None = Field(
        default=None, description="number of a GPU, or host-emulated; by default the first GPU if there is one"
    )
    concurrency: _Count = Field(default=4, description="batches in flight (DYN_KVBM_MAX_CONCURRENT_TRANSFERS)")
    engine: str = Field(default="posix", description="of the disk tier: posix, kvikio, nixl or auto")
    seconds: Annotated[float, BeforeValidator(as_seconds), Field(gt=0)] = Field(
        default=40.0, description="time to spend, checks included; three rounds are made in any case"
    )
    seed: int = Field(default=0, ge=0, description="of the blocks' bytes and of the order of cases and slots")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.device and not self.disk:
            raise ConfigError("device, disk: both are 0, there is nowhere to move blocks to; give one of them a size")
        largest = max(self.block_bytes)
        least = {"device": 2 * largest, "host": largest, "disk": 2 * largest * len(self.block_bytes)}
        for name, needed in least.items():
            size = getattr(self, name)
            if 0 < size < needed:
                raise ConfigError(
                    f"{name}: {format_size(size)} are too few for blocks of {format_size(largest)}; "
                    f"give {format_size(needed)} or more, or smaller block_bytes"
                )
        return self

    @property
    def plain_bytes(self) -> int:
        """Size of the file beside the tier's, which is read and written plainly; 0 without a disk."""
        return max(2 * PIECE, min(self.disk // 4, 2 * LARGE) // PIECE * PIECE) if self.disk else 0

    def check_space(self) -> None:
        """Refuse a directory that is none or has too little room, before anything is written to it.

        Raises
        ------
        ConfigError
            If files cannot be made there.
        TierFull
            If there is no room.
        """
        if not self.disk:
            return
        if not self.path.is_dir() or not os.access(self.path, os.W_OK | os.X_OK):
            raise ConfigError(f"path: {str(self.path)!r} is not a directory that can be written to; choose another one")
        needed, free = self.disk + self.plain_bytes, shutil.disk_usage(self.path).free
        if needed > free:
            raise TierFull(
                f"path: {format_size(needed)} are needed on the file system of {str(self.path)!r}, {format_size(free)} "
                "are free; make the disk smaller, or choose another path"
            )
