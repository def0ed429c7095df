"""Counting in device memory at an address, for CUDA kernels: the companion of :mod:`dynalab.kernels.words`.

In the CUDA simulator, whose threads are Python's, a lock makes the addition atomic.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from dynalab.kernels.gpu import simulated

if simulated():
    _lock = threading.Lock()

    def atomic_add(address: int, value: int) -> int:
        """Add to the int64 at an address and return what it was before."""
        if address % 8:
            raise ValueError(f"misaligned 8-byte addition at {address:#x}")
        with _lock:
            place = ctypes.c_int64.from_address(address)
            before = place.value
            place.value = before + int(value)
        return before

else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic
    from numba.types import int64

    _I64 = ir.IntType(64)

    @intrinsic
    def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
        """Add to the int64 at an address and return what it was before."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            function = ir.FunctionType(_I64, [_I64, _I64])
            asm = ir.InlineAsm(function, "atom.global.add.u64 $0, [$1], $2;", "=l,l,l", side_effect=True)
            return builder.call(asm, args)

        return int64(int64, int64), generate
