"""The first page of a disk tier's index: whose blocks these are, and how many.

It is written when the index is made and when it grows, never in between, and lies within 512 bytes, which a drive
writes whole or not at all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import numpy as np

from dynalab.errors import ConfigError, LayoutError, TierError
from dynalab.kernels.checksum import checksum_blocks
from dynalab.units import format_size

#: Bytes before the first entry; one entry's bytes. A page holds whole entries, so that none lies across two sectors.
PAGE: Final = 4096
ENTRY_BYTES: Final = 64

_MAGIC: Final = b"dynalabK"
_VERSION: Final = 1
# Magic, version, flags (none yet), block and slot bytes, capacity, file's own number, probe of the checksum,
# fingerprint and summary of the layout, room; then, at the end of the sector, the checksum of it all.
_FIELDS: Final = struct.Struct("<8sIIQQQQQ32s256s160x")
_CHECK: Final = struct.Struct("<Q")
_BEGIN: Final = struct.Struct("<8sI")


def bytes_checksum(data: bytes, seed: int) -> int:
    """Return the checksum of some bytes."""
    array = np.frombuffer(data, np.uint8)
    return int(checksum_blocks(np.array([array.ctypes.data], np.uint64), len(data), seed=seed)[0])


@dataclass(frozen=True, slots=True)
class Superblock:
    """What an index says about itself.

    Parameters
    ----------
    block_bytes, slot_bytes : int
        Bytes of content, and bytes from one slot of the data file to the next.
    capacity : int
        Slots.
    file_id : int
        A random number that every entry's checksum begins with: entries of an older index are not mistaken for its own.
    fingerprint, layout : str
        The stored layout, as its fingerprint and in words.
    """

    block_bytes: int
    slot_bytes: int
    capacity: int
    file_id: int
    fingerprint: str
    layout: str

    @property
    def index_bytes(self) -> int:
        """Size of the index."""
        return PAGE + self.capacity * ENTRY_BYTES

    @property
    def data_bytes(self) -> int:
        """Size of the data file."""
        return self.capacity * self.slot_bytes

    def to_bytes(self) -> bytes:
        """Return the page."""
        # The probe is a checksum of known bytes: if ever the function changes, old files are refused, not misread.
        fields = _FIELDS.pack(
            _MAGIC,
            _VERSION,
            0,
            self.block_bytes,
            self.slot_bytes,
            self.capacity,
            self.file_id,
            bytes_checksum(bytes(range(256)), self.file_id),
            self.fingerprint.encode(),
            self.layout.encode()[:256],
        )
        return (fields + _CHECK.pack(bytes_checksum(fields, 0))).ljust(PAGE, b"\0")

    @classmethod
    def from_bytes(cls, page: bytes, path: Path) -> Self:
        """Read the page.

        Raises
        ------
        TierError
            If it is none, or damaged, or of another version: with the file's name and the cure.
        """
        cure = "; delete the directory or pass reset=True, which gives its blocks up"
        if len(page) < PAGE or page[: len(_MAGIC)] != _MAGIC:
            raise TierError(f"disk: {path} is cut short or no index of a disk tier{cure}")
        version = _BEGIN.unpack_from(page)[1]
        fields = page[: _FIELDS.size]
        if bytes_checksum(fields, 0) != _CHECK.unpack_from(page, _FIELDS.size)[0]:
            if version != _VERSION:
                raise TierError(f"disk: {path} has version {version} or is damaged, this is version {_VERSION}{cure}")
            raise TierError(f"disk: the first page of {path} is damaged{cure}")
        if version != _VERSION:
            raise TierError(f"disk: {path} has version {version}, this is version {_VERSION}{cure}")
        _, _, _, block, slot, capacity, file_id, probe, fingerprint, layout = _FIELDS.unpack(fields)
        if probe != bytes_checksum(bytes(range(256)), file_id):
            raise TierError(f"disk: {path} was written with another checksum{cure}")
        text = layout.rstrip(b"\0").decode(errors="replace")
        return cls(block, slot, capacity, file_id, fingerprint.rstrip(b"\0").decode(), text)

    def grown_to(self, wanted: Superblock, path: Path) -> Self:
        """Return this superblock with the capacity of the wanted one.

        Raises
        ------
        LayoutError
            If the file holds blocks of another layout.
        ConfigError
            If the file has more slots than wanted.
        """
        if (self.fingerprint, self.block_bytes, self.slot_bytes) != (
            wanted.fingerprint,
            wanted.block_bytes,
            wanted.slot_bytes,
        ):
            raise LayoutError(
                f"disk: {path} holds blocks of {self.layout} ({format_size(self.block_bytes)}), not of {wanted.layout} "
                f"({format_size(wanted.block_bytes)}); choose another path, or pass reset=True, which gives them up"
            )
        if self.capacity > wanted.capacity:
            raise ConfigError(
                f"disk: {path} has {self.capacity} blocks ({format_size(self.data_bytes)}), more than the capacity of "
                f"{wanted.capacity} ({format_size(wanted.data_bytes)}) asked for; ask for as many or more, or pass "
                "reset=True, which gives them up"
            )
        return replace(self, capacity=wanted.capacity)
