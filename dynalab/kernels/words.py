"""Loads and stores of 16, 8, 4 and 1 bytes at an address, for CUDA kernels.

Numba never joins neighbouring accesses: an element of complex128 is read in two halves, a 16-byte record in sixteen
bytes. These intrinsics are inline PTX instead, so that one call is one instruction. Loads of data go by the read-only
path without filling the first-level cache, and stores to the second level, for a copy touches every byte once. What is
read that way must not be written by the same kernel.

Addresses are int64: mixed with unsigned ones, Numba would compute with floats. In the CUDA simulator, which cannot run
PTX, plain Python functions on the process's own memory take their place.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

from dynalab.kernels.gpu import simulated

if simulated():
    _PYTHON: Final = {1: ctypes.c_uint8, 4: ctypes.c_uint32, 8: ctypes.c_int64}

    def load_entry(address: int) -> int:
        """Read an int64 of a table."""
        return ctypes.c_int64.from_address(address).value

    def load16(address: int) -> tuple[int, int]:
        """Read 16 bytes as two int64; the address is a multiple of 16."""
        if address % 16:
            raise ValueError(f"misaligned 16-byte load at {address:#x}")
        return load_entry(address), load_entry(address + 8)

    def store16(address: int, pair: tuple[int, int]) -> None:
        """Write two int64; the address is a multiple of 16."""
        if address % 16:
            raise ValueError(f"misaligned 16-byte store at {address:#x}")
        ctypes.c_int64.from_address(address).value = pair[0]
        ctypes.c_int64.from_address(address + 8).value = pair[1]

    def _pair(width: int) -> tuple[Any, Any]:
        word = _PYTHON[width]

        def load(address: int) -> int:
            # A GPU stops with an error where the host's processor would only be slow.
            if address % width:
                raise ValueError(f"misaligned {width}-byte load at {address:#x}")
            return word.from_address(address).value

        def store(address: int, value: int) -> None:
            if address % width:
                raise ValueError(f"misaligned {width}-byte store at {address:#x}")
            word.from_address(address).value = value

        return load, store

    load8, store8 = _pair(8)
    load4, store4 = _pair(4)
    load1, store1 = _pair(1)

    def divide(dividend: int, divisor: int) -> int:
        """Quotient of two numbers below 2**32."""
        return dividend // divisor

else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic
    from numba.types import Tuple, int64, none

    _I32, _I64 = ir.IntType(32), ir.IntType(64)

    @intrinsic
    def load_entry(typingctx: Any, address: Any) -> Any:
        """Read an int64 of a table."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            asm = ir.InlineAsm(ir.FunctionType(_I64, [_I64]), "ld.global.nc.b64 $0, [$1];", "=l,l", side_effect=True)
            return builder.call(asm, args)

        return int64(int64), generate

    @intrinsic
    def load16(typingctx: Any, address: Any) -> Any:
        """Read 16 bytes as two int64; the address is a multiple of 16."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            two = ir.LiteralStructType([_I64, _I64])
            text = "ld.global.nc.L1::no_allocate.v2.b64 {$0, $1}, [$2];"
            asm = ir.InlineAsm(ir.FunctionType(two, [_I64]), text, "=l,=l,l", side_effect=True)
            loaded = builder.call(asm, args)
            return context.make_tuple(
                builder, signature.return_type, [builder.extract_value(loaded, 0), builder.extract_value(loaded, 1)]
            )

        return Tuple((int64, int64))(int64), generate

    @intrinsic
    def store16(typingctx: Any, address: Any, pair: Any) -> Any:
        """Write two int64; the address is a multiple of 16."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            function = ir.FunctionType(ir.VoidType(), [_I64, _I64, _I64])
            asm = ir.InlineAsm(function, "st.global.cg.v2.b64 [$0], {$1, $2};", "l,l,l", side_effect=True)
            builder.call(asm, [args[0], builder.extract_value(args[1], 0), builder.extract_value(args[1], 1)])
            return context.get_dummy_value()

        return none(int64, Tuple((int64, int64))), generate

    def _pair(width: int) -> tuple[Any, Any]:
        # PTX has no 8-bit registers: a byte travels in a 32-bit one.
        word, letter = (_I64, "l") if width == 8 else (_I32, "r")
        kind = "u8" if width == 1 else f"b{8 * width}"

        @intrinsic
        def load(typingctx: Any, address: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                text = f"ld.global.nc.L1::no_allocate.{kind} $0, [$1];"
                asm = ir.InlineAsm(ir.FunctionType(word, [_I64]), text, f"={letter},l", side_effect=True)
                value = builder.call(asm, args)
                return value if width == 8 else builder.zext(value, _I64)

            return int64(int64), generate

        @intrinsic
        def store(typingctx: Any, address: Any, value: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                value = args[1] if width == 8 else builder.trunc(args[1], _I32)
                function = ir.FunctionType(ir.VoidType(), [_I64, word])
                asm = ir.InlineAsm(function, f"st.global.cg.{kind} [$0], $1;", f"l,{letter}", side_effect=True)
                builder.call(asm, [args[0], value])
                return context.get_dummy_value()

            return none(int64, int64), generate

        return load, store

    load8, store8 = _pair(8)
    load4, store4 = _pair(4)
    load1, store1 = _pair(1)

    @intrinsic
    def divide(typingctx: Any, dividend: Any, divisor: Any) -> Any:
        """Quotient of two numbers below 2**32: a division of 64 bits takes a GPU some 70 instructions more."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            quotient = builder.udiv(builder.trunc(args[0], _I32), builder.trunc(args[1], _I32))
            return builder.zext(quotient, _I64)

        return int64(int64, int64), generate
