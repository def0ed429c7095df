"""Memory to copy and what must come of it: one plain-Python reference for the twin, the simulator and the GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: A block of bytes before and after everything that may be written: it must stay as it was.
GUARD = 64


@dataclass
class Case:
    """Source and target memory with pairs between them: offsets into both, and sizes."""

    source: NDArray[np.uint8]
    target: NDArray[np.uint8]
    src: NDArray[np.int64]
    dst: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def addresses(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        return tuple(  # type: ignore[return-value]
            (memory.ctypes.data + offsets).astype(np.uint64)
            for memory, offsets in ((self.source, self.src), (self.target, self.dst))
        )

    def expected(self) -> NDArray[np.uint8]:
        """Target memory after the copy, byte by byte."""
        after = self.target.copy()
        for src, dst, size in zip(self.src.tolist(), self.dst.tolist(), self.sizes.tolist(), strict=True):
            after[dst : dst + size] = self.source[src : src + size]
        return after


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Zeroed memory that begins at a multiple of 4096."""
    memory = np.zeros(nbytes + 4096, np.uint8)
    begin = -memory.ctypes.data % 4096
    return memory[begin : begin + nbytes]


def make_case(sizes: list[int], shifts: list[tuple[int, int]], seed: int = 0) -> Case:
    """Lay out pairs at given distances from a multiple of 64 on both sides, in shuffled order in both memories."""
    rng = np.random.default_rng(seed)
    rooms = [-(-size // 64) * 64 + 128 for size in sizes]
    memory = []
    offsets = []
    for side in range(2):
        order = rng.permutation(len(sizes))
        place, at = np.zeros(len(sizes), np.int64), GUARD
        for i in order.tolist():
            place[i] = at + shifts[i][side]
            at += rooms[i]
        offsets.append(place)
        memory.append(aligned(at + GUARD))
    memory[0][:] = rng.integers(1, 256, memory[0].size, dtype=np.uint8)
    memory[1][:] = rng.integers(1, 256, memory[1].size, dtype=np.uint8)
    return Case(memory[0], memory[1], *offsets, np.array(sizes, np.int64))


def mixed_case(seed: int = 0) -> Case:
    """Every combination of distances that changes the width of the accesses, with sizes around every limit."""
    shifts, sizes = [], []
    for src, dst in [
        (0, 0),
        (16, 32),
        (8, 8),
        (8, 0),
        (4, 4),
        (4, 0),
        (12, 4),
        (2, 2),
        (1, 0),
        (5, 5),
        (0, 3),
        (7, 15),
    ]:
        for size in (0, 1, 3, 4, 7, 8, 15, 16, 17, 31, 63, 100, 511, 512, 600, 2047, 2049):
            shifts.append((src, dst))
            sizes.append(size)
    return make_case(sizes, shifts, seed)


def layout_strides(name: str, outer: int, heads: int, tokens: int, run: int, layers: int = 1) -> tuple[int, int, int]:
    """Byte strides of (outer, head, token) for a named layout; of a universal block all layers interleave."""
    region = heads * tokens * run
    return {
        "NHD": (region, run, heads * run),
        "HND": (region, tokens * run, run),
        "universal": (tokens * run, layers * outer * tokens * run, run),
    }[name]


def layer_bases(
    memory: NDArray, name: str, blocks: int, layers: int, outer: int, heads: int, tokens: int, run: int
) -> NDArray[np.int64]:
    """Addresses of every (block, layer) in memory that holds blocks of a named layout one after the other."""
    layer = outer * tokens * run * (1 if name == "universal" else heads)
    block = layers * outer * heads * tokens * run
    return memory.ctypes.data + np.arange(blocks)[:, None] * block + np.arange(layers) * layer


def as_nhd(memory: NDArray[np.uint8], name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """View of such memory with axes (block, layer, outer, token, head, byte), whatever the layout."""
    blocks, layers, outer, heads, tokens, run = shape
    if name == "NHD":
        return memory.reshape(blocks, layers, outer, tokens, heads, run)
    if name == "HND":
        return memory.reshape(blocks, layers, outer, heads, tokens, run).transpose(0, 1, 2, 4, 3, 5)
    return memory.reshape(blocks, heads, layers, outer, tokens, run).transpose(0, 2, 3, 4, 1, 5)
