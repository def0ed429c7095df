"""The machine code of victim selection and checksums for sm_90, read without a GPU: widths, loads first, no spills."""

from __future__ import annotations

import re

import pytest

from dynalab.kernels.gpu import why_no_compiler

WHY = why_no_compiler()
pytestmark = pytest.mark.skipif(bool(WHY), reason=f"CUDA kernels cannot be compiled: {WHY}")

NAMES = ("sample", "filter", "scatter", "rank", "checksum", "finish")


@pytest.fixture(scope="module")
def ptx() -> dict[str, str]:
    """PTX of every kernel, by name, without comments."""
    from dynalab.kernels import checksum_device, victims_kernels

    kernels = {name: getattr(victims_kernels, f"{name.upper()}_KERNEL") for name in NAMES[:4]}
    kernels |= {"checksum": checksum_device.CHECKSUM, "finish": checksum_device.FINISH}
    return {name: re.sub(r"//.*", "", kernel.ptx((9, 0))) for name, kernel in kernels.items()}


@pytest.mark.parametrize("name", NAMES)
def test_no_floats_no_local_memory_and_no_calls(name: str, ptx: dict[str, str]) -> None:
    """A slip between signed and unsigned makes Numba compute with floats, which lose the low bits of keys and words."""
    assert ".target sm_90" in ptx[name]
    assert not re.search(r"\.f(16|32|64)\b", ptx[name])
    assert ".local" not in ptx[name]
    assert not re.search(r"\bcall\b", ptx[name])


@pytest.mark.parametrize(("name", "threads"), list(zip(NAMES, (512, 256, 256, 256, 256, 256), strict=True)))
def test_machine_code_without_spills_and_half_a_multiprocessor_full_at_least(
    name: str, threads: int, ptx: dict[str, str]
) -> None:
    """65,536 registers and 227 KiB of shared memory must hold 1,024 threads."""
    linking = pytest.importorskip("cuda.core")
    text = ptx[name]
    options = linking.LinkerOptions(arch="sm_90", ptxas_options=["-v"], verbose=True)
    linker = linking.Linker(linking.ObjectCode.from_ptx(text[text.index(".version") :].encode()), options=options)
    assert linker.link("cubin").code[:4] == b"\x7fELF"
    told = linker.get_info_log()
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in told
    registers = int(re.search(r"Used (\d+) registers", told)[1])  # type: ignore[index]
    shared = int(re.search(r"(\d+) bytes smem", told)[1])  # type: ignore[index]
    assert registers * 1024 <= 65_536
    assert shared <= 48 << 10
    assert shared * (1024 // threads) <= 227 << 10


def straight_runs(text: str) -> list[list[str]]:
    """Instructions between labels and branches."""
    runs: list[list[str]] = [[]]
    for line in map(str.strip, text.splitlines()):
        if line.endswith(":") or re.search(r"\bbra\b", line):
            runs.append([])
        elif line:
            runs[-1].append(line)
    return runs


def loads(run: list[str]) -> list[str]:
    return [match[1] for line in run if (match := re.match(r"ld\.global\.nc\.L1::no_allocate\.(\S+)", line))]


def test_the_filter_loads_four_blocks_before_it_looks_at_one(ptx: dict[str, str]) -> None:
    """Twelve loads in one run: priority, last use and position of four blocks; their pins follow before any branch on
    a value, in a run each, for one byte or four."""
    runs = straight_runs(ptx["filter"])
    (first,) = [n for n, run in enumerate(runs) if loads(run) == ["b32", "b64", "b32"] * 4]
    following = [kind for run in runs[first + 1 :] for kind in loads(run)]
    assert sorted(following[:8]) == ["b32"] * 4 + ["u8"] * 4


def test_counting_in_shared_memory_and_once_per_thread_block_in_global_memory(ptx: dict[str, str]) -> None:
    assert re.search(r"\batom\.shared\.add", ptx["filter"])
    assert ptx["filter"].count("atom.global.add.u64") >= 2
    for name in ("sample", "rank", "checksum", "finish"):
        assert "atom.global" not in ptx[name]


def test_the_checksum_loads_16_bytes_at_once_four_times_before_it_multiplies(ptx: dict[str, str]) -> None:
    wide = [loads(run) for run in straight_runs(ptx["checksum"]) if "v2.b64" in loads(run)]
    assert ["v2.b64"] * 4 in wide
    assert all(set(kinds) == {"v2.b64"} for kinds in wide), "no narrow load in the aligned path"
    orders = [
        [line[:3] for line in run if line.startswith(("ld.global", "mul.lo.s64"))]
        for run in straight_runs(ptx["checksum"])
    ]
    assert ["ld."] * 4 + ["mul"] * 16 in orders, "two for each of eight words"
