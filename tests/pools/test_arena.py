"""Host arenas: really there, aligned, locked where the system allows it, refused where it has no memory."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynalab.errors import ConfigError, DeviceMemoryError, TierClosed
from dynalab.pools import HostArena, _cuda, _locking, available_memory


def resident(address: int) -> dict[str, int]:
    """Return the kernel's account of the mapping that holds an address, in KiB."""
    inside, fields = False, {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            low, high = (int(end, 16) for end in words[0].split("-"))
            inside = low <= address < high
        elif inside and len(words) == 3 and words[2] == "kB":
            fields[words[0].rstrip(":")] = int(words[1])
    return fields


@pytest.mark.parametrize("nbytes", [1, 4095, 4096, 4097, (2 << 20) - 1, 2 << 20, (6 << 20) + 12345])
def test_arena_is_aligned_zero_and_of_its_size(nbytes: int) -> None:
    with HostArena(nbytes) as arena:
        assert arena.array.shape == (nbytes,)
        assert arena.array.dtype == np.uint8
        assert arena.address == arena.array.ctypes.data
        assert arena.address % (2 << 20 if nbytes >= 2 << 20 else 4096) == 0
        assert not arena.array.any()
        arena.array[:] = 255
        assert int(arena.array.sum()) == 255 * nbytes


@pytest.mark.parametrize("lock", [False, True])
def test_every_page_is_there_before_the_first_use(lock: bool) -> None:
    with HostArena("16MiB", pinned=False, lock=lock) as arena:
        held = resident(arena.address)
        assert held["Rss"] >= 16 << 10
        assert held["Locked"] >= (16 << 10 if arena.kind == "locked" else 0)
        assert arena.locked == (arena.kind == "locked")


def test_closing_gives_pages_back_at_once_even_where_a_view_lives() -> None:
    arena = HostArena("16MiB", pinned=False)
    view, address = arena.array[5:], arena.address
    view[:] = 1
    arena.close()
    arena.close()
    assert resident(address)["Rss"] == 0
    assert not view[: 1 << 16].any()
    for ask in (lambda: arena.array, lambda: arena.address):
        with pytest.raises(TierClosed, match="closed"):
            ask()
    assert "closed" in repr(arena)


def test_a_forgotten_arena_is_given_back() -> None:
    arena = HostArena("16MiB", pinned=False)
    address = arena.address
    assert resident(address)["Rss"] >= 16 << 10
    del arena
    gc.collect()
    assert resident(address).get("Rss", 0) == 0


def test_pinned_memory_is_unpinned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr(_cuda, "why_no_cuda", lambda: "")
    monkeypatch.setattr(_cuda, "pin", lambda address, nbytes: calls.append(("pin", address, nbytes)))
    monkeypatch.setattr(_cuda, "unpin", lambda address: calls.append(("unpin", address)))
    arena = HostArena(10_000)
    address = arena.address
    assert arena.kind == "pinned"
    assert arena.locked
    arena.close()
    arena.close()
    assert calls == [("pin", address, 10_000), ("unpin", address)]
    calls.clear()
    assert HostArena(10_000, pinned=False).kind != "pinned"
    assert calls == []


def test_failure_to_pin_is_an_error_only_where_cuda_was_demanded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(address: int, nbytes: int) -> None:
        raise RuntimeError("cudaErrorMemoryAllocation: out of memory")

    monkeypatch.setattr(_cuda, "why_no_cuda", lambda: "")
    monkeypatch.setattr(_cuda, "pin", refuse)
    with pytest.raises(DeviceMemoryError, match=r"cannot be pinned \(cudaErrorMemoryAllocation.*pinned=False"):
        HostArena("1MiB", pinned=True)
    with caplog.at_level(logging.WARNING), HostArena("1MiB") as arena:
        assert arena.kind in ("locked", "pageable")
    assert "not pinned (cudaErrorMemoryAllocation" in caplog.text


def test_more_than_there_is_is_refused_with_both_sizes() -> None:
    with pytest.raises(DeviceMemoryError, match=r"^1 PiB of host memory asked, .* available to this process; make"):
        HostArena("1PiB")
    with pytest.raises(DeviceMemoryError, match="of host memory asked"):
        HostArena(available_memory() + (1 << 30))


def test_the_control_groups_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynalab.pools.arena.available_memory", lambda: 1 << 20)
    with pytest.raises(DeviceMemoryError, match="2 MiB of host memory asked, 1 MiB available"):
        HostArena("2MiB")
    HostArena("1MiB").close()


def test_pages_that_do_not_come_are_an_error_not_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(_locking, "touch_pages", refuse)
    with pytest.raises(DeviceMemoryError, match="1 MiB of host memory asked"):
        HostArena("1MiB")


@pytest.mark.parametrize("size", [0, -1, "much", 1.5, True])
def test_sizes_that_are_none(size: object) -> None:
    with pytest.raises(ConfigError, match="size"):
        HostArena(size)  # type: ignore[arg-type]


@pytest.mark.parametrize("node", [-1, 1023, 1024, 10**6])
def test_nodes_that_do_not_exist(node: int) -> None:
    with pytest.raises(ConfigError, match=f"numa_node: {node} cannot be used"):
        HostArena(4096, numa_node=node)


def test_node_is_noted() -> None:
    if not Path("/sys/devices/system/node/node0").exists():
        pytest.skip("the kernel knows no NUMA nodes")
    with HostArena("64KiB", numa_node=0) as arena:
        assert arena.numa_node == 0


_REFUSED = """
import logging, os, resource
from dynalab.pools import HostArena
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8192, 8192))
if os.geteuid() == 0:
    os.setuid(65534)
logging.basicConfig(format="%(message)s")
with HostArena("1MiB", pinned=False) as arena:
    print(arena.locked, arena.kind)
"""


def test_where_the_limit_refuses_locking_the_arena_is_pageable_and_says_so() -> None:
    done = subprocess.run([sys.executable, "-c", _REFUSED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "pageable"]
    assert "1 MiB of host memory are not locked" in done.stderr
    assert "ulimit -l" in done.stderr


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal: 999 kB\nMemAvailable:    1000 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1000 << 10),
        (
            {  # version 2: the tightest ancestor counts, its page cache is free
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "5000\n",
                "sys/fs/cgroup/a/memory.max": "70000\n",
                "sys/fs/cgroup/a/memory.current": "50000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 40000\ninactive_file 3000\nactive_file 1000\n",
            },
            70000 - 50000 + 4000,
        ),
        (
            {  # version 1 in a container that does not see its group by its name
                "proc/self/cgroup": "4:cpu:/x\n5:memory:/docker/0123\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "60000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "59000\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 100\ntotal_active_file 10\n",
            },
            1110,
        ),
        (
            {
                "proc/self/cgroup": "0::/over\n",
                "sys/fs/cgroup/over/memory.max": "10\n",
                "sys/fs/cgroup/over/memory.current": "20\n",
            },
            0,
        ),
    ],
)
def test_available_memory_is_the_least_of_machine_and_groups(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert available_memory(_write(tmp_path, {"proc/meminfo": MEMINFO} | files)) == expected


def test_available_memory_of_this_machine_is_sane() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < available_memory() <= total
