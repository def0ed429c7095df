"""A policy's compiled step as a plain number, for drivers that are called thousands of times a second.

Numba looks the machine code of a function argument up anew at every call of a driver, which takes 30 microseconds a
function. A number costs nothing; the driver turns it back into a function.
"""

from __future__ import annotations

from typing import Any

import numba
from numba.core import cgutils
from numba.extending import intrinsic

from dynalab.kv.policies._registry import STEP_SIGNATURE, STEP_TYPE


def step_address(step: Any) -> int:
    """Return the address of a compiled step. It is valid while the step exists; those of policies always do."""
    parts = step.get_compile_result(STEP_SIGNATURE)._asdict()
    return int(parts["library"].get_pointer_to_function(parts["fndesc"].llvm_func_name))


@intrinsic
def step_at(typing: Any, address: Any) -> Any:
    """Return the step at an address that :func:`step_address` gave."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = cgutils.create_struct_proxy(STEP_TYPE)(context, builder)
        # The one of the three addresses by which Numba calls a function that it has compiled itself.
        function.jit_addr = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        return function._getvalue()

    return STEP_TYPE(numba.int64), generate
