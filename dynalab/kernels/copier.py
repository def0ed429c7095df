"""Copy pairs by whichever path is quickest for them: merge, look up, go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from dynalab.errors import unknown
from dynalab.kernels import gpu
from dynalab.kernels.calibrate import calibrated
from dynalab.kernels.memcpy import merge_runs
from dynalab.kernels.paths import PathTable, choose_path

#: Copies (src, dst, nbytes) in a direction, on a stream where there are streams.
Copy = Callable[[ArrayLike, ArrayLike, ArrayLike, str, Any], object]


class PairCopier:
    """Copies tables of addresses by the path that a calibration promises to be quickest.

    Parameters
    ----------
    table : PathTable
        Times of the paths on this machine.
    ways : mapping of str to callable
        What copies by each of the table's paths; takes source, target, bytes, direction and stream.

    Raises
    ------
    ConfigError
        If the table has a path that nothing is given for.
    """

    def __init__(self, table: PathTable, ways: Mapping[str, Copy]) -> None:
        for direction in table.directions:
            for path in table.paths(direction):
                if path not in ways:
                    raise unknown("path", path, ways)
        self.table = table
        self._ways = dict(ways)

    @classmethod
    def for_host(cls, *, folder: Path | str | None = None) -> PairCopier:
        """Return the copier of this machine's memory, calibrated at its first use; its direction is "host_to_host"."""
        from dynalab.kernels.paths_host import HOST_PATHS, HostRig

        rig = HostRig()
        try:
            table = calibrated(rig, folder=folder)
        finally:
            rig.close()

        def way(function: Callable[..., None]) -> Copy:
            return lambda src, dst, nbytes, direction, stream: function(src, dst, nbytes)

        return cls(table, {path: way(function) for path, function in HOST_PATHS.items()})

    @classmethod
    def for_gpu(cls, *, folder: Path | str | None = None) -> PairCopier:
        """Return the copier of this machine's GPU, calibrated at its first use; directions "h2d", "d2h" and "d2d".

        Raises
        ------
        ConfigError
            Where there is no GPU.
        """
        gpu.require_gpu("a copier for the GPU")
        from dynalab.kernels.paths_gpu import GPU_PATHS, GpuRig

        rig = GpuRig()
        try:
            table = calibrated(rig, folder=folder)
        finally:
            rig.close()
        return cls(table, GPU_PATHS)

    def copy(self, src: ArrayLike, dst: ArrayLike, nbytes: ArrayLike, *, direction: str, stream: Any = None) -> str:
        """Copy all pairs, neighbours merged; on a GPU in stream order, without waiting.

        Parameters
        ----------
        src, dst, nbytes
            As for `dynalab.kernels.copy.copy_pairs`. Neighbours that are adjacent on both sides must belong to one
            allocation each.
        direction : str
            One of the table's.
        stream : int or object
            For a GPU: a stream that is not CUDA's legacy default stream.

        Returns
        -------
        str
            The path taken; "" if there was nothing to copy.
        """
        src, dst, sizes = merge_runs(src, dst, nbytes)
        if src.size == 0:
            self.table.paths(direction)  # a slip in the name shows with empty tables too
            return ""
        path = choose_path(self.table, direction, float(sizes.mean()), src.size)
        self._ways[path](src, dst, sizes, direction, stream)
        return path
