"""Element types of a KV cache by name: their width, and what NumPy can show of them.

NumPy has neither bfloat16 nor the two 8-bit floats. Tiers move bytes and never compute with them, so only the width
matters; a view shows such elements as unsigned integers of that width, bits unchanged.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from dynalab.errors import LayoutError, did_you_mean

#: Types that NumPy lacks, and the unsigned integers that hold their bits.
BIT_TYPES: Final = {"bfloat16": "uint16", "fp8_e4m3": "uint8", "fp8_e5m2": "uint8"}

#: Short names, as engines and model cards write them.
ALIASES: Final = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "fp64": "float64",
    "fp8": "fp8_e4m3",
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
}
_COMMON: Final = ("float16", "bfloat16", "float32", "fp8_e4m3", "fp8_e5m2", "int8", "uint8")


def canonical_dtype(dtype: Any, *, field: str = "dtype") -> str:
    """Return the one name by which a layout knows an element type.

    Parameters
    ----------
    dtype : str, numpy.dtype or type
        A NumPy type of numbers, one of `BIT_TYPES`, or one of `ALIASES`.
    field : str
        Name of the setting, for the error.

    Raises
    ------
    LayoutError
        If it is no type of numbers.

    Examples
    --------
    >>> canonical_dtype("bf16"), canonical_dtype("<f2"), canonical_dtype(np.float32)
    ('bfloat16', 'float16', 'float32')
    """
    name = dtype.strip().lower().removeprefix("torch.") if isinstance(dtype, str) else dtype
    if isinstance(name, str):
        name = ALIASES.get(name, name)
        if name in BIT_TYPES:
            return name
    try:
        # None is float64 to NumPy, and surely a slip here.
        found = None if name is None else np.dtype(name)
    except TypeError:
        found = None
    if found is None or found.kind not in "iufc" or not found.isnative:
        close = did_you_mean(name, [*_COMMON, *ALIASES], most=1) if isinstance(name, str) else []
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise LayoutError(
            f"{field}: {dtype!r} is not an element type; {hint}write a native NumPy type or one of {', '.join(_COMMON)}"
        )
    return found.name


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy type in which elements of a canonical type are shown: itself, or unsigned bits of its width.

    Examples
    --------
    >>> numpy_dtype("bfloat16"), numpy_dtype("float16")
    (dtype('uint16'), dtype('float16'))
    """
    return np.dtype(BIT_TYPES.get(name, name))
