"""The doctor: finds what is there, says what follows from what is not, never fails and never dawdles."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from dynalab.lab import doctor, probes
from dynalab.lab.doctor import examine, render

NAMES = [
    "Python",
    "GPU",
    "CUDA packages",
    "GPU kernels",
    "pinned memory",
    "memory",
    "cores",
    "disk, working directory",
    "disk, temporary files",
    "disk engines",
    "event loop",
    "AIPerf",
    "Numba cache",
    "Jupyter kernel",
]


def found(name):
    return next(finding for finding in examine() if finding["name"] == name)


def program(directory, name, *lines):
    """Put an executable shell script on disk."""
    path = directory / name
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine with an empty PATH, no NVIDIA driver and no distributions but those that a test names."""
    installed = {}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(probes.metadata, "version", version)
    monkeypatch.setattr(probes, "cuda_driver", list)
    return installed


def test_this_machine_is_examined_whole_and_quickly():
    start = time.monotonic()
    findings = examine()
    assert time.monotonic() - start < 2.5
    assert [finding["name"] for finding in findings] == NAMES
    for finding in findings:
        assert finding["status"] in ("ok", "limited", "missing")
        assert finding["value"]
        assert finding["consequence"]
        assert "could not be examined" not in finding["value"]


def test_findings_are_plain_data():
    findings = examine()
    assert json.loads(json.dumps(findings)) == findings


def test_the_table_shows_every_finding_with_its_consequence():
    findings = examine()
    lines = render(findings).splitlines()
    assert len(lines) == 2 * len(findings)
    for finding, head, tail in zip(findings, lines[::2], lines[1::2], strict=True):
        assert head.split()[0] == finding["status"]
        assert finding["name"] in head
        assert head.endswith(finding["value"])
        assert tail.strip() == f"-> {finding['consequence']}"
    assert render([]) == ""


def test_this_python_is_named():
    assert found("Python")["value"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


@pytest.mark.gpu
def test_a_real_gpu_is_named():
    if not (probes.nvidia_smi() or probes.cuda_driver()):
        pytest.skip("no NVIDIA GPU on this machine")
    assert found("GPU")["status"] == "ok"


def test_without_a_gpu_the_device_tier_is_simulated(bare):
    finding = found("GPU")
    assert (finding["status"], finding["value"]) == ("missing", "no NVIDIA GPU or driver")
    assert "a device tier is emulated in host memory, and every result says so" in finding["consequence"]


def test_gpus_are_named_as_the_driver_names_them(bare, tmp_path):
    program(
        tmp_path, "nvidia-smi", "echo 'NVIDIA H200, 143771 MiB, 570.86.15'", "echo 'NVIDIA L4, 23034 MiB, 570.86.15'"
    )
    finding = found("GPU")
    assert finding["status"] == "ok"
    assert finding["value"] == (
        "NVIDIA H200 with 143771 MiB, driver 570.86.15; NVIDIA L4 with 23034 MiB, driver 570.86.15"
    )


@pytest.mark.parametrize("lines", [["exit 9"], ["echo 'No devices were found'"], ["echo"]])
def test_a_driver_tool_without_gpus_finds_none(bare, tmp_path, lines):
    program(tmp_path, "nvidia-smi", *lines)
    assert found("GPU")["status"] == "missing"


def test_the_driver_is_asked_where_its_tool_is_absent(bare, monkeypatch):
    monkeypatch.setattr(probes, "cuda_driver", lambda: ["NVIDIA H200 with 139.8 GiB"])
    assert found("GPU")["value"] == "NVIDIA H200 with 139.8 GiB"


def test_no_driver_library_means_no_gpu(monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(probes.ctypes, "CDLL", absent)
    assert probes.cuda_driver() == []


def test_cuda_packages(bare):
    assert found("CUDA packages")["status"] == "missing"
    bare["cupy-cuda12x"] = "14.2.0"
    finding = found("CUDA packages")
    assert (finding["status"], finding["value"]) == ("limited", "cupy 14.2.0")
    assert "GPU kernels need numba-cuda, cuda-bindings: pip install 'dynalab[cuda]'" in finding["consequence"]
    bare.update({"numba-cuda": "0.30.4", "cuda-bindings": "13.0.3"})
    assert found("CUDA packages")["status"] == "ok"


@pytest.mark.parametrize(
    ("why_no_gpu", "why_no_compiler", "status", "value", "then"),
    [
        ("", "", "ok", "run on the GPU", "dynalab bench gpu"),
        ("no driver", "", "limited", "compile, but do not run: no driver", "twins on the CPU"),
        ("no driver", "cupy not installed", "missing", "cupy not installed", "twins on the CPU"),
    ],
)
def test_whether_kernels_can_run(monkeypatch, why_no_gpu, why_no_compiler, status, value, then):
    from dynalab.kernels import gpu

    monkeypatch.setattr(gpu, "why_no_gpu", lambda: why_no_gpu)
    monkeypatch.setattr(gpu, "why_no_compiler", lambda: why_no_compiler)
    finding = found("GPU kernels")
    assert (finding["status"], finding["value"]) == (status, value)
    assert then in finding["consequence"]


def test_engines_of_a_disk_tier(bare, monkeypatch):
    assert (found("disk engines")["status"], found("disk engines")["value"]) == ("ok", "posix")
    bare["nixl-cu13"] = "1.5.1"
    assert (found("disk engines")["status"], found("disk engines")["value"]) == ("ok", "posix, nixl 1.5.1")
    bare["kvikio-cu13"] = "26.2.0"
    finding = found("disk engines")
    assert (finding["status"], finding["value"]) == ("limited", "posix, kvikio 26.2.0, nixl 1.5.1")
    assert "kvikio does nothing without a GPU" in finding["consequence"]
    monkeypatch.setattr(probes, "cuda_driver", lambda: ["NVIDIA H200"])
    assert found("disk engines")["status"] == "ok"
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    assert found("disk engines")["status"] == "missing"


@pytest.mark.parametrize(
    ("limit", "status", "value"),
    [
        (-1, "ok", "unlimited"),
        (8 * 2**20, "limited", "8 MiB of locked memory"),
        (None, "missing", "this platform tells"),
    ],
)
def test_the_limit_of_pinned_memory(monkeypatch, limit, status, value):
    monkeypatch.setattr(probes, "memlock_limit", lambda: limit)
    finding = found("pinned memory")
    assert finding["status"] == status
    assert finding["value"].startswith(value)


@pytest.mark.parametrize(
    ("status", "limit"),
    [
        ("Name:\tpython\nCapEff:\t000001ffffffffff\n", -1),
        ("CapEff:\t0000000000004000\n", -1),
        ("CapEff:\t000001ffffffbfff\n", 65_536),
        ("CapEff:\t0000000000000000\n", 65_536),
        ("", 65_536),
    ],
)
def test_who_may_lock_past_the_limit(tmp_path, monkeypatch, status, limit):
    resource = pytest.importorskip("resource")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(status)
    monkeypatch.setattr(probes, "_PROC", tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (65_536, 65_536))
    assert probes.memlock_limit() == limit


def test_a_platform_without_limits(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert probes.memlock_limit() is None


@pytest.mark.parametrize(
    ("meminfo", "limit", "status", "value"),
    [
        ("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n", None, "ok", "16 GiB, 8 GiB available"),
        ("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n", "max", "ok", "16 GiB, 8 GiB available"),
        (
            "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
            str(2**30),
            "limited",
            "16 GiB, 8 GiB available, limited to 1 GiB by the container",
        ),
        ("MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n", None, "limited", "1 GiB, 512 MiB available"),
        ("nonsense\n", None, "limited", "unknown"),
    ],
)
def test_memory_of_machine_and_container(tmp_path, monkeypatch, meminfo, limit, status, value):
    (tmp_path / "meminfo").write_text(meminfo)
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit + "\n")
    monkeypatch.setattr(probes, "_PROC", tmp_path)
    monkeypatch.setattr(probes, "_CGROUP", tmp_path)
    finding = found("memory")
    assert (finding["status"], finding["value"]) == (status, value)


@pytest.mark.parametrize(
    ("cpus", "quota", "status", "value"),
    [
        (8, "max 100000", "ok", "8 usable"),
        (8, "250000 100000", "ok", "8 usable, limited to 2.5 by the container"),
        (8, "50000 100000", "limited", "8 usable, limited to 0.5 by the container"),
        (1, None, "limited", "1 usable"),
    ],
)
def test_cores_of_machine_and_container(tmp_path, monkeypatch, cpus, quota, status, value):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(probes, "_CGROUP", tmp_path)
    finding = found("cores")
    assert (finding["status"], finding["value"]) == (status, value)


def test_a_directory_is_tested_with_a_file_that_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finding = found("disk, working directory")
    assert str(tmp_path) in finding["value"]
    assert " free on " in finding["value"]
    assert list(tmp_path.iterdir()) == []


def test_a_working_directory_that_is_gone_is_a_finding(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    finding = found("disk, working directory")
    assert (finding["status"], "FileNotFoundError" in finding["value"]) == ("limited", True)


@pytest.mark.parametrize(
    ("unbuffered", "kind", "status", "says"),
    [
        (True, "ext4", "ok", "O_DIRECT works"),
        (False, "overlay", "limited", "no O_DIRECT"),
        (None, "ext4", "limited", "not writable"),
        (True, "tmpfs", "limited", "memory rather than disk"),
    ],
)
def test_what_a_directory_is_good_for(tmp_path, monkeypatch, unbuffered, kind, status, says):
    monkeypatch.setattr(probes, "unbuffered_io", lambda _: unbuffered)
    monkeypatch.setattr(probes, "file_system", lambda _: kind)
    answer = doctor.disk(str(tmp_path))
    assert answer[0] == status
    assert answer[1].endswith(says)
    assert f"on {kind} " in answer[1]


def test_unbuffered_access_is_tried_for_real(tmp_path, monkeypatch):
    # Buffered flags must succeed anywhere: the page that was written is the page that is read.
    path = tmp_path / "page"
    path.touch()
    assert probes._page_survives(str(path), os.O_RDWR)
    assert path.stat().st_size == 4096
    assert probes.unbuffered_io(str(tmp_path / "absent")) is None

    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(probes, "_page_survives", refuse)
    assert probes.unbuffered_io(str(tmp_path)) is False
    assert [entry.name for entry in tmp_path.iterdir()] == ["page"]


def test_file_systems_are_found_by_their_longest_mount_point(tmp_path, monkeypatch):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mounts").write_text(
        "overlay / overlay rw 0 0\n/dev/a /data ext4 rw 0 0\n/dev/b /data/my\\040disk xfs rw 0 0\nbroken\n"
        "/dev/c /data btrfs rw 0 0\n"
    )
    monkeypatch.setattr(probes, "_PROC", tmp_path)
    kinds = [probes.file_system(path) for path in ("/", "/database", "/data", "/data/x", "/data/my disk/x")]
    assert kinds == ["overlay", "overlay", "btrfs", "btrfs", "xfs"]
    monkeypatch.setattr(probes, "_PROC", tmp_path / "absent")
    assert probes.file_system("/") is None


def test_aiperf_as_package_command_or_not_at_all(bare, tmp_path, monkeypatch):
    finding = found("AIPerf")
    assert finding["status"] == "missing"
    assert "pip install 'dynalab[aiperf]'" in finding["consequence"]
    path = program(tmp_path, "aiperf", "echo 'aiperf 0.13.0'")
    assert found("AIPerf")["value"] == f"0.13.0 at {path}"
    program(tmp_path, "aiperf", "exit 1")
    assert found("AIPerf")["status"] == "limited"
    bare["aiperf"] = "0.13.1"
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    assert found("AIPerf")["value"] == "0.13.1 in this Python"


def test_the_numba_cache_goes_where_it_can(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "new" / "cache"))
    assert found("Numba cache")["value"] == str(tmp_path / "new" / "cache")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    finding = found("Numba cache")
    assert finding["status"] == "limited"
    assert "set NUMBA_CACHE_DIR to a writable directory" in finding["consequence"]
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr(probes, "may_write", lambda path: Path.home() in path.parents)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert found("Numba cache")["value"] == str(tmp_path / ".cache" / "numba")


def test_the_kernel_of_another_python_is_noticed(tmp_path, monkeypatch):
    kernelspec = pytest.importorskip("jupyter_client.kernelspec")

    class Manager:
        argv = (sys.executable, "-m", "ipykernel_launcher")

        def get_kernel_spec(self, name):
            if self.argv is None:
                raise kernelspec.NoSuchKernel(name)
            return kernelspec.KernelSpec(argv=list(self.argv))

    monkeypatch.setattr(kernelspec, "KernelSpecManager", Manager)
    assert found("Jupyter kernel")["status"] == "ok"
    Manager.argv = ("/elsewhere/bin/python",)
    finding = found("Jupyter kernel")
    assert (finding["status"], finding["value"]) == ("limited", "python3 runs /elsewhere/bin/python")
    Manager.argv = None
    assert found("Jupyter kernel")["value"] == "no kernel 'python3'"
    monkeypatch.setitem(sys.modules, "jupyter_client.kernelspec", None)
    assert found("Jupyter kernel")["status"] == "missing"


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def broken():
        raise RuntimeError("out of\ncheese")

    monkeypatch.setattr(doctor, "gpu", broken)
    finding = found("GPU")
    assert finding["status"] == "limited"
    assert finding["value"] == "could not be examined (RuntimeError: out of cheese)"
    assert found("cores")["value"] != finding["value"]


def test_a_check_that_hangs_costs_one_finding(monkeypatch):
    monkeypatch.setattr(doctor, "DEADLINE", 0.3)
    monkeypatch.setattr(doctor, "gpu", lambda: time.sleep(3))
    start = time.monotonic()
    findings = {finding["name"]: finding for finding in examine()}
    assert time.monotonic() - start < 1.5
    assert findings["GPU"]["value"] == "did not answer within 0.3 s"
    assert findings["Python"]["status"] != "missing"


def test_commands_that_dawdle_or_fail_tell_nothing(tmp_path):
    assert probes.output([str(program(tmp_path, "slow", "sleep 5"))], timeout=0.1) is None
    assert probes.output([str(program(tmp_path, "failing", "echo no; exit 3"))], timeout=5) is None
    assert probes.output([str(tmp_path / "absent")], timeout=5) is None
    assert probes.output([str(program(tmp_path, "good", "echo yes"))], timeout=5) == "yes"


def test_uvloop_is_told_of_with_what_it_is_for(bare, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    without = found("event loop")
    assert (without["status"], without["value"]) == ("missing", "asyncio's own, no uvloop")
    assert "pip install 'dynalab[uvloop]'" in without["consequence"]
    bare["uvloop"] = "0.23.0"
    there = found("event loop")
    assert (there["status"], "uvloop 0.23.0" in there["value"]) == ("ok", True)
    assert "dynalab bench net" in there["consequence"]
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert found("event loop")["status"] == "missing", "its files have gone, or it is another Python's"
