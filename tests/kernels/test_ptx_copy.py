"""The machine code of the copy kernels for sm_90, read without a GPU: wide accesses, no spills, no slow divisions."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from dynalab.kernels.gpu import why_no_compiler

WHY = why_no_compiler()
pytestmark = pytest.mark.skipif(bool(WHY), reason=f"CUDA kernels cannot be compiled: {WHY}")

WIDTHS = {16: "v2.b64", 8: "b64", 4: "b32", 1: "u8"}
UNROLLED = 4


def body(ptx: str) -> str:
    """Instructions of the one kernel in the text, without comments."""
    assert ptx.count(".entry") == 1
    text = ptx[ptx.index(".entry") :]
    return re.sub(r"//.*", "", text[text.index("{") :])


def basic_blocks(ptx: str) -> list[tuple[str, list[str]]]:
    """Cut the instructions at labels and after branches; each block is (label or "", instructions)."""
    blocks: list[tuple[str, list[str]]] = [("", [])]
    for line in (line.strip() for line in body(ptx).splitlines()):
        if match := re.fullmatch(r"(\$\w+):", line):
            blocks.append((match[1], []))
        elif line:
            blocks[-1][1].append(line)
            if re.search(r"\bbra(\.uni)?\b", line):
                blocks.append(("", []))
    return blocks


def accesses(lines: list[str]) -> Counter[str]:
    """Count loads and stores of data by their width; loads of tables (cached, one number per pair) apart."""
    found: Counter[str] = Counter()
    for line in lines:
        if match := re.search(r"\b(ld|st)\.(global|local|shared|param)?\S*", line):
            if match[2] == "param":
                continue
            assert match[2] == "global", line
            kind = match[0]
            table = match[1] == "ld" and "no_allocate" not in kind
            width = next(width for width, name in WIDTHS.items() if kind.endswith(name))
            found["table" if table else f"{match[1]}{width}"] += 1
    return found


def loops(ptx: str) -> list[Counter[str]]:
    """Accesses of every block that jumps back to itself."""
    blocks = basic_blocks(ptx)
    return [
        accesses(lines)
        for label, lines in blocks
        if label and lines and re.search(rf"bra\s+{re.escape(label)};", lines[-1])
    ]


@pytest.fixture(scope="module")
def copy_ptx() -> str:
    from dynalab.kernels.copy_device import COPY

    return COPY.ptx((9, 0))


@pytest.fixture(scope="module")
def permute_ptx() -> str:
    from dynalab.kernels.permute_device import PERMUTE

    return PERMUTE.ptx((9, 0))


def test_the_aligned_loop_is_one_load_and_one_store_per_16_bytes(copy_ptx) -> None:
    (wide,) = [loop for loop in loops(copy_ptx) if loop["ld16"]]
    assert wide == Counter(ld16=UNROLLED, st16=UNROLLED), "nothing else, and no byte among them"


def test_every_width_has_its_own_loop_with_four_loads_before_the_stores(copy_ptx) -> None:
    found = {next(w for w in WIDTHS if loop[f"ld{w}"]): loop for loop in loops(copy_ptx)}
    assert found == {w: Counter({f"ld{w}": UNROLLED, f"st{w}": UNROLLED}) for w in WIDTHS}
    for label, lines in basic_blocks(copy_ptx):
        if label and accesses(lines)["ld16"] == UNROLLED:
            order = [line[:2] for line in lines if line.startswith(("ld.", "st."))]
            assert order == ["ld"] * UNROLLED + ["st"] * UNROLLED


def test_no_block_mixes_16_byte_accesses_with_narrower_ones(copy_ptx) -> None:
    """Single bytes are copied at the ends of a pair only: in blocks of their own, one load and one store each."""
    for _, lines in basic_blocks(copy_ptx):
        found = accesses(lines)
        assert not (found["ld16"] + found["st16"] and sum(found.values()) > found["ld16"] + found["st16"])
    total = sum((accesses(lines) for _, lines in basic_blocks(copy_ptx)), Counter())
    # The loop, up to three words that are left, and for bytes also one each at head and tail.
    assert {w: (total[f"ld{w}"], total[f"st{w}"]) for w in WIDTHS} == {16: (7, 7), 8: (7, 7), 4: (7, 7), 1: (9, 9)}
    assert total["table"] == 3, "source, target and size, once for each part and not within a loop"


def test_accesses_go_past_the_first_level_cache(copy_ptx, permute_ptx) -> None:
    for ptx in (copy_ptx, permute_ptx):
        assert "ld.global.nc.L1::no_allocate.v2.b64" in ptx
        assert "st.global.cg.v2.b64" in ptx


def test_the_permuting_kernel_moves_16_bytes_at_once(permute_ptx) -> None:
    total = sum((accesses(lines) for _, lines in basic_blocks(permute_ptx)), Counter())
    assert {w: (total[f"ld{w}"], total[f"st{w}"]) for w in WIDTHS} == dict.fromkeys(WIDTHS, (4, 4))
    for _, lines in basic_blocks(permute_ptx):
        found = accesses(lines)
        assert not (found["ld16"] and found["ld1"] + found["ld4"] + found["ld8"])


@pytest.mark.parametrize("which", ["copy_ptx", "permute_ptx"])
def test_no_memory_of_its_own_no_calls_and_no_wide_division(which, request) -> None:
    text = body(request.getfixturevalue(which))
    assert ".local" not in text
    assert ".shared" not in text
    assert not re.search(r"\bcall\b", text)
    assert not re.search(r"\b(div|rem)\.[su]64\b", text), "a 64-bit division takes some 100 instructions"
    if which == "copy_ptx":
        assert not re.search(r"\b(div|rem)\.", text)


@pytest.mark.parametrize("route", ["ptx", "ltoir"])
@pytest.mark.parametrize(("which", "threads"), [("copy", 1024), ("permute", 256)])
def test_machine_code_without_spills_and_few_enough_registers(which, threads, route, request) -> None:
    """NVIDIA's assembler takes it for sm_90, and a thread block finds room for its registers (65,536 each).

    A launch goes by link-time optimisation where nvjitlink is there: by the second route.
    """
    linking = pytest.importorskip("cuda.core")
    options = {"arch": "sm_90", "ptxas_options": ["-v"], "verbose": True}
    if route == "ptx":
        text = request.getfixturevalue(f"{which}_ptx")
        code = linking.ObjectCode.from_ptx(text[text.index(".version") :].encode())
    else:
        from dynalab.kernels.copy_device import COPY, cuda
        from dynalab.kernels.permute_device import PERMUTE

        kernel = {"copy": COPY, "permute": PERMUTE}[which]
        compiled = cuda.compile(kernel.function, kernel.signature, device=False, abi="numba", output="ltoir", cc=(9, 0))
        code, options["link_time_optimization"] = linking.ObjectCode.from_ltoir(compiled[0]), True
    linker = linking.Linker(code, options=linking.LinkerOptions(**options))
    assert linker.link("cubin").code[:4] == b"\x7fELF"
    told = linker.get_info_log()
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in told
    registers = int(re.search(r"Used (\d+) registers", told)[1])  # type: ignore[index]
    assert registers * threads <= 65_536


def test_the_reader_notices_a_byte_in_the_aligned_loop(copy_ptx) -> None:
    wide = "ld.global.nc.L1::no_allocate.v2.b64"
    at = copy_ptx.index(wide)
    broken = copy_ptx[:at] + "ld.global.nc.L1::no_allocate.u8" + copy_ptx[at + len(wide) :]
    assert Counter(ld16=UNROLLED, st16=UNROLLED) in loops(copy_ptx)
    assert Counter(ld16=UNROLLED, st16=UNROLLED) not in loops(broken)
