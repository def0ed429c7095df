"""Victim selection on a real GPU: bit for bit what the CPU's twin selects, up to a million blocks."""

from __future__ import annotations

import numpy as np
import pytest
from test_victims import realistic

from dynalab.kernels import gpu
from dynalab.kernels.victims import select_victims

pytestmark = pytest.mark.gpu

KINDS = ["spread", "one ancient block", "ticks", "all equal", "nested lumps"]


@pytest.fixture(autouse=True)
def _needs_gpu() -> None:
    if why := gpu.why_no_gpu():
        pytest.skip(why)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 1000, 1023, 1025, 50_000, 1_000_000])
def test_equals_the_twin(kind: str, n: int) -> None:
    import cupy

    from dynalab.kernels.victims_device import select_victims_device

    columns = realistic(n, kind)
    device = [cupy.asarray(column) for column in columns]
    for k in (1, 1000, n // 3, n):
        found = cupy.asnumpy(select_victims_device(*device, k))
        expected = select_victims(*columns, k)
        assert np.array_equal(found[: expected.size], expected)
        assert (found[expected.size :] == -1).all()


def test_any_plan_gives_the_same_victims() -> None:
    import cupy

    from dynalab.kernels.victims_device import SelectPlan, select_victims_device

    columns = realistic(300_000, "ticks")
    device = [cupy.asarray(column) for column in columns]
    expected = select_victims(*columns, 500)
    for plan in (SelectPlan(1024, 1, 0), SelectPlan(2, 1, 0), SelectPlan(64, 64, 1), SelectPlan(1024, 1024, 1)):
        assert np.array_equal(cupy.asnumpy(select_victims_device(*device, 500, plan=plan)), expected)


def test_many_selections_in_one_workspace_and_on_two_streams() -> None:
    import cupy

    from dynalab.kernels.victims_device import select_victims_device, victims_workspace_bytes

    columns = realistic(100_000, "spread")
    device = [cupy.asarray(column) for column in columns]
    expected = select_victims(*columns, 2000)
    cupy.cuda.Device().synchronize()
    results = []
    for _ in range(2):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            workspace = cupy.empty(victims_workspace_bytes(100_000), cupy.uint8)
            results += [select_victims_device(*device, 2000, stream=stream, workspace=workspace) for _ in range(50)]
    cupy.cuda.Device().synchronize()
    for result in results:
        assert np.array_equal(cupy.asnumpy(result), expected)
