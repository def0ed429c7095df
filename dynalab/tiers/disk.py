"""The disk tier: KV blocks in one preallocated file, which the next process finds again.

What is on the disk, and why nothing wrong is served whatever dies when, says `dynalab.tiers.disk_index`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError, TierError, TransferError
from dynalab.tiers.disk_file import DATA_NAME, Space, TierFiles
from dynalab.tiers.disk_index import BlockIndex
from dynalab.tiers.disk_io import (
    DIRECT_ALIGNMENT,
    Addresses,
    DataFile,
    EngineFactory,
    Gate,
    Ints,
    check_threads,
    find_engine,
)
from dynalab.tiers.disk_record import Record, reason
from dynalab.tiers.disk_staging import Staging
from dynalab.tiers.tier import (
    READ_CORRUPT,
    READ_FAILED,
    READ_OK,
    READ_STALE,
    BlockKeys,
    Capabilities,
    StorageTier,
    slot_count,
)
from dynalab.units import parse_size

if TYPE_CHECKING:
    from dynalab.kv.layout import KVLayout

_log = logging.getLogger(__name__)


class DiskTier(StorageTier):
    """Blocks in a file of fixed size that survive the process.

    Parameters
    ----------
    layout : KVLayout
        Shape of a block.
    size : str or int, optional
        Bytes of the data file, as text ("32GiB") or number. A slot takes the block's bytes rounded up to 4096; the
        index takes 64 bytes a slot besides.
    path : str or path
        Directory of the files; made if it is not there.
    capacity : int, optional
        Slots, instead of `size`. A tier that is there already may grow, not shrink.
    direct : bool
        Bypass the page cache (O_DIRECT); where the file system cannot, a warning says so.
    engine : {"posix", "kvikio", "nixl", "auto"} or callable
        What moves the bytes; see `dynalab.tiers.disk_io`. "auto" is kvikio beside a GPU, else posix.
    threads : int, optional
        Transfers in flight.
    physical_cap : str or int, optional
        Bytes that all files below `cap_path` together may take up on the drive, whoever wrote them.
    cap_path : str or path, optional
        Directory that the physical cap is about: one that several ranks' tiers share, say. Default: `path`.
    verify : bool
        Compare every block that is read with its checksum. False leaves that out for blocks which this process has
        written, or has verified once; blocks of an earlier process are verified at their first read in any case.
    reset : bool
        Give up what the files hold.
    zero_fill : bool
        Write the file full of zeros where the file system cannot reserve space.

    Raises
    ------
    TierInUse
        If another tier, of this process or another one, has the files open.
    TierFull
        If there is no room for them on the file system or under the physical cap. Nothing has changed then.
    LayoutError, ConfigError
        If the files hold blocks of another layout, or more slots than asked for, or a parameter is wrong.
    TierError
        If the files are damaged or cannot be opened.

    Notes
    -----
    A block written (True) survives the death of the process; after a `flush` it survives a loss of power.

    Distinct slots may be written and read from any threads at once. Of a block that is read while its slot is written
    or forgotten, the read says that it is stale.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from dynalab.kv import KVLayout
    >>> layout = KVLayout(num_layers=2, outer=2, page_tokens=4, inner=8)
    >>> block = np.arange(layout.block_bytes, dtype=np.uint8)
    >>> address, hashes = np.array([block.ctypes.data], np.uint64), np.array([42], np.uint64)
    >>> with tempfile.TemporaryDirectory() as path:
    ...     with DiskTier(layout, "64KiB", path=path) as tier:
    ...         tier.write([3], address, BlockKeys.of(hashes)).tolist()
    ...     with DiskTier(layout, "64KiB", path=path) as tier:
    ...         slots, keys = tier.recovered()
    ...         slots.tolist(), keys.hash.tolist(), tier.read(slots, address, keys.hash).tolist()
    [True]
    ([3], [42], [0])
    """

    name = "disk"

    def __init__(
        self,
        layout: KVLayout,
        size: str | int | None = None,
        *,
        path: str | os.PathLike[str],
        capacity: int | None = None,
        direct: bool = True,
        engine: str | EngineFactory = "posix",
        threads: int | None = None,
        physical_cap: str | int | None = None,
        cap_path: str | os.PathLike[str] | None = None,
        verify: bool = True,
        reset: bool = False,
        zero_fill: bool = False,
    ) -> None:
        self.slot_bytes = -(-layout.block_bytes // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT
        super().__init__(layout, slot_count(size, capacity, self.slot_bytes, self.name))
        self.path = Path(path)
        cap = None if physical_cap is None else parse_size(physical_cap, field="physical_cap")
        if cap_path is not None and cap is None:
            raise ConfigError(f"cap_path: {os.fspath(cap_path)!r} without a cap; give physical_cap, too")
        space = Space(cap, self.path if cap_path is None else Path(cap_path), zero_fill)
        self._verify = verify
        self._record = Record(self.path / DATA_NAME)
        self._gate = Gate()
        factory = find_engine(engine)
        count = check_threads(threads)
        with contextlib.ExitStack() as stack:
            self._files = TierFiles(
                self.path,
                self.stored_layout,
                self.slot_bytes,
                self.capacity,
                direct=direct,
                space=space,
                reset=reset,
            )
            stack.callback(self._files.close)
            superblock = self._files.superblock
            self._seed = superblock.file_id
            self._index = BlockIndex(self._files.index_fd, self.capacity, superblock.file_id)
            found = self._index.recover(self._files.read_entries())
            self._recovered = found, self._index.keys(found)
            file = DataFile(self._files.data, self._files.data_fd, self._files.direct, superblock.data_bytes)
            self._engine = factory(file, count)
            stack.callback(self._engine.close)
            self._staging = Staging(self._engine, self.block_bytes, self.slot_bytes)
            self._undo = stack.pop_all()

    @property
    def capabilities(self) -> Capabilities:
        """What this tier can do."""
        return Capabilities(durable=True, direct_io=self._files.direct, gpu_direct=self._engine.gpu_direct)

    @property
    def last_errors(self) -> tuple[TransferError, ...]:
        """The last hundred blocks that were not written or read, and why, the newest last."""
        return self._record.errors()

    def write(
        self,
        slots: npt.ArrayLike,
        sources: npt.ArrayLike,
        keys: BlockKeys,
        *,
        errors: list[TransferError] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Write blocks; parameters and result as `StorageTier.write` says.

        Parameters
        ----------
        slots, sources, keys
            Whole slots, no two alike; addresses need no alignment, but spare a copy if they are multiples of 4096.
        errors : list, optional
            Takes one error for every block that is not written.

        Raises
        ------
        TierError
            If the arguments do not fit, or a slot is being written by somebody else. Nothing is written then.
        """
        where, addresses = self.check_slots(slots), _addresses("sources", sources)
        _check_lengths(slots=where, sources=addresses, keys=keys.hash)
        if len(where) == 0:
            return np.zeros(0, np.bool_)
        with self._gate, self._index.claimed(where) as failed:
            todo = np.flatnonzero(failed == 0)
            # Summed before it is written: bytes that change on the way to the drive do not match.
            checksums = self._engine.checksums(addresses[todo], self.block_bytes, self._seed)
            failed[todo] = self._staging.transfer(where[todo], addresses[todo], write=True)
            good = failed[todo] == 0
            todo = todo[good]
            failed[todo] = self._index.publish(where[todo], keys[todo], checksums[good])
        written: npt.NDArray[np.bool_] = failed == 0
        lost = [self._record.failure("write", where[i], keys.hash[i], int(failed[i])) for i in np.flatnonzero(~written)]
        self._record.note(lost, errors, blocks_written=int(written.sum()), write_failures=len(lost))
        return written

    def read(
        self,
        slots: npt.ArrayLike,
        targets: npt.ArrayLike,
        hashes: npt.ArrayLike,
        *,
        errors: list[TransferError] | None = None,
    ) -> npt.NDArray[np.int8]:
        """Read blocks; parameters and result as `StorageTier.read` says.

        Parameters
        ----------
        slots, targets, hashes
            Targets need no alignment, but spare a copy if they are multiples of 4096.
        errors : list, optional
            Takes one error for every block whose status is not `READ_OK`.

        Raises
        ------
        TierError
            If the arguments do not fit. Nothing is read then.
        """
        where, addresses = self.check_slots(slots), _addresses("targets", targets)
        wanted = np.atleast_1d(np.asarray(hashes, np.uint64))
        _check_lengths(slots=where, targets=addresses, hashes=wanted)
        with self._gate:
            status, codes = self._read(where, addresses, wanted)
        lost = [self._record.miss(status[i], where[i], wanted[i], int(codes[i])) for i in np.flatnonzero(status)]
        self._record.note(
            lost,
            errors,
            blocks_read=int(np.count_nonzero(status == READ_OK)),
            read_failures=int(np.count_nonzero(status == READ_FAILED)),
            corrupt_blocks=int(np.count_nonzero(status == READ_CORRUPT)),
            stale_reads=int(np.count_nonzero(status == READ_STALE)),
        )
        return status

    def _read(self, slots: Ints, addresses: Addresses, hashes: Addresses) -> tuple[npt.NDArray[np.int8], Ints]:
        """Read blocks; return their statuses, and what the engine said of each."""
        there, sequences, checksums, known = self._index.look_up(slots, hashes)
        status = np.where(there, READ_OK, READ_STALE).astype(np.int8)
        codes = np.zeros(len(slots), np.int64)
        todo = np.flatnonzero(there)
        codes[todo] = self._staging.transfer(slots[todo], addresses[todo], write=False)
        status[codes != 0] = READ_FAILED
        check = np.flatnonzero((status == READ_OK) & (self._verify | ~known))
        right = self._engine.checksums(addresses[check], self.block_bytes, self._seed) == checksums[check]
        status[check[~right]] = READ_CORRUPT
        verified = np.zeros(len(slots), np.bool_)
        verified[check[right]] = True
        # What was overwritten meanwhile is not corrupt, and not good, however well the bytes look.
        still = self._index.still(slots, sequences, verified)
        status[(status != READ_FAILED) & ~still] = READ_STALE
        return status, codes

    def forget(self, slots: npt.ArrayLike) -> None:
        """Drop blocks: a read of them is stale from now on, and a tier opened later does not find them.

        After a loss of power without a `flush` a later tier may find them all the same, with their right bytes.

        Raises
        ------
        TierError
            If a slot is being written by somebody else.
        TransferError
            If the index cannot be written; the blocks are dropped in this process only.
        """
        where = np.unique(self.check_slots(slots))
        if len(where) == 0:
            return
        with self._gate, self._index.claimed(where) as failed:
            pass  # an empty slot is all that is wanted
        lost = [self._record.failure("forget", where[i], None, int(failed[i])) for i in np.flatnonzero(failed)]
        if lost:
            self._record.note(lost, None)
            raise lost[0]

    def recovered(self) -> tuple[Ints, BlockKeys]:
        """Return the slots and keys of the blocks found when the tier was opened, in the order they were written.

        Their bytes are checked when they are read: right after a loss of power, some may turn out to be corrupt.
        """
        return self._recovered

    def flush(self) -> None:
        """Return once every block written so far survives a loss of power.

        Raises
        ------
        TransferError
            If the drive reports that it lost something: which blocks, shows when they are read.
        """
        with self._gate:
            self._sync()

    def stats(self) -> dict[str, Any]:
        """Return facts and counters by name; a corrupt block is also counted by each further read of it."""
        facts = super().stats()
        facts |= self._record.counts()
        facts |= {
            "engine": self._engine.name,
            "direct_io": self._files.direct,
            "live_blocks": self._index.live_count(),
            "recovered_blocks": len(self._recovered[0]),
            "damaged_entries": self._index.damaged,
            "superseded_entries": self._index.superseded,
        }
        if not self.closed:
            facts["allocated_bytes"] = self._files.allocated_bytes()
        return facts

    def _close(self) -> None:
        """Wait for what is under way, make it durable, and close the files, which lets others open them."""
        self._gate.shut()
        self._engine.close()
        try:
            self._sync()
        except TransferError as error:
            _log.error("%s", error)
        self._staging.close()
        self._undo.close()

    def _sync(self) -> None:
        """Bring the data to the drive, then the entries that speak of it."""
        try:
            os.fdatasync(self._files.data_fd)
            os.fdatasync(self._files.index_fd)
        except OSError as error:
            raise TransferError(f"disk: flush of {self.path} failed: {reason(error.errno or 0)}") from error


def _addresses(field: str, values: npt.ArrayLike) -> Addresses:
    """Return addresses as an array, none of them null."""
    array = np.ascontiguousarray(np.atleast_1d(np.asarray(values, np.uint64)))
    if array.ndim > 1 or not array.all():
        raise TierError(f"disk: {field} are one row of addresses of memory, none of them 0")
    return array


def _check_lengths(**arrays: npt.NDArray[Any]) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise TierError(f"disk: {told}; give one of each a block")
