"""What a benchmark of tiers can measure: directions, sizes and layouts of blocks; and slots that rest between turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from dynalab.errors import ConfigError
from dynalab.kv.layout import KVLayout

Slots = npt.NDArray[np.int64]

#: Every way from tier to tier; inside the device, bytes read and bytes written count.
DIRECTIONS: Final = (
    "device_to_host",
    "host_to_device",
    "host_to_disk",
    "disk_to_host",
    "device_to_disk",
    "disk_to_device",
    "device_to_device",
)
#: Layers of a block, key and value each: a layer-first block lies in 64 pieces.
LAYERS: Final = 32
#: What O_DIRECT wants, and what divides into layers, tokens and elements without a rest.
PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Case:
    """Something to measure.

    Parameters
    ----------
    direction : str
        One of `DIRECTIONS`.
    block_bytes, batch : int
        Bytes of a block, and blocks that one call of a mover takes.
    order : {"block_first", "layer_first"}
        Layout of the device's and the host's blocks; the disk's are always block-first.
    """

    direction: str
    block_bytes: int
    batch: int
    order: str

    @property
    def ends(self) -> tuple[str, str]:
        """Names of the source tier and of the target tier."""
        source, _, target = self.direction.partition("_to_")
        return source, target


def payloads(direction: str) -> int:
    """Return how often a byte that is moved counts: read and written inside the device, else once."""
    return 2 if direction == "device_to_device" else 1


def layout_of(block_bytes: int, order: str = "block_first") -> KVLayout:
    """Return a layout of 32 layers, keys and values, 16 tokens and so many bytes a block.

    Raises
    ------
    ConfigError
        If the bytes are not a multiple of 4096.

    Examples
    --------
    >>> layout_of(2 << 20).summary()
    '32 layers x 2 x 16 tokens x 1 heads x 1024 bfloat16, block_first NHD'
    """
    if block_bytes < PAGE or block_bytes % PAGE:
        raise ConfigError(f"block_bytes: {block_bytes} is not a multiple of {PAGE}; write sizes such as 64KiB or 1MiB")
    inner = block_bytes // (LAYERS * 2 * 16 * 2)
    return KVLayout(num_layers=LAYERS, outer=2, page_tokens=16, inner=inner, dtype="bfloat16", order=order)  # type: ignore[arg-type]


class Deck:
    """Deals out slots in permuted order; none comes again before all others had their turn.

    Parameters
    ----------
    rng : numpy.random.Generator
    n : int
        Slots, numbered from 0.

    Examples
    --------
    >>> deck = Deck(np.random.default_rng(0), 5)
    >>> sorted(deck.deal(2).tolist() + deck.deal(3).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self._rng, self._slots, self._next = rng, rng.permutation(n), 0

    def deal(self, n: int) -> Slots:
        """Return the next n slots, no two alike; where fewer are left, shuffle anew."""
        if self._next + n > len(self._slots):
            self._slots, self._next = self._rng.permutation(len(self._slots)), 0
        self._next += n
        return self._slots[self._next - n : self._next]
