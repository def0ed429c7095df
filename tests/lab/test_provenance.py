"""Provenance and data sets on disk: plain, whole, and the same bytes every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dynalab import __version__
from dynalab.errors import ReportError
from dynalab.lab import provenance as module
from dynalab.lab.provenance import canonical_json, provenance, save_dataset, stamp

ROOT = Path(module.__file__).resolve().parents[2]

AWKWARD = {
    "none": None,
    "flag": True,
    "numpy_flag": np.bool_(False),
    "nested": {"b": [1, {"c": 2}], "a": np.float64(0.5)},
    "mixed": [1, "two"],
    "names": ["lru", "fifo"],
    "numbers": (1, 2, 3),
    "empty": [],
    "int": np.int64(7),
    "text": "µs",
}


def dataset() -> xr.Dataset:
    rng = np.random.default_rng(5)
    return xr.Dataset(
        {
            "hit_ratio": (("policy", "capacity"), rng.random((2, 40)), {"units": "1", "exact": True}),
            "blocks": ("capacity", np.arange(40), {"note": None}),
            "total": ((), 3.5),
        },
        coords={"policy": ["lru", "s3fifo"], "capacity": np.arange(40) * 10},
        attrs=dict(AWKWARD),
    )


def test_save_round_trips_and_makes_attributes_plain(tmp_path: Path) -> None:
    original = dataset()
    path = save_dataset(original, tmp_path / "results.nc")
    with xr.open_dataset(path, engine="h5netcdf") as read:
        xr.testing.assert_equal(read.load(), original)
        attrs = read.attrs
        assert read["hit_ratio"].attrs == {"units": "1", "exact": 1}
        assert read["blocks"].attrs == {"note": ""}
    assert attrs["none"] == ""
    assert (attrs["flag"], attrs["numpy_flag"], attrs["int"]) == (1, 0, 7)
    assert json.loads(attrs["nested"]) == {"a": 0.5, "b": [1, {"c": 2}]}
    assert json.loads(attrs["mixed"]) == [1, "two"]
    assert list(attrs["names"]) == ["lru", "fifo"]
    assert list(attrs["numbers"]) == [1, 2, 3]
    assert attrs["empty"] == "[]"
    assert attrs["text"] == "µs"
    assert original.attrs["none"] is None, "the caller's data set must not change"


def test_save_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    here = save_dataset(dataset(), tmp_path / "here.nc")
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); sys.path.insert(0, {str(ROOT)!r})\n"
        "from test_provenance import dataset, save_dataset\n"
        f"save_dataset(dataset(), {str(tmp_path / 'there.nc')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert here.read_bytes() == (tmp_path / "there.nc").read_bytes()


def test_save_replaces_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "results.nc"
    save_dataset(dataset(), path)
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        save_dataset(xr.Dataset({"bad": ("x", np.array([object()]))}), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.nc"]


def test_save_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="absent"):
        save_dataset(dataset(), tmp_path / "absent" / "results.nc")


def test_provenance_tells_versions_machine_and_parameters() -> None:
    facts = provenance(seed=3, capacities=np.array([1, 2]), tiers={"host": 5})
    assert facts["dynalab_version"] == __version__
    assert facts["numpy_version"] == np.__version__
    assert facts["xarray_version"] == xr.__version__
    assert isinstance(facts["machine_cores"], int)
    assert facts["machine_cores"] >= 1
    assert facts["machine_cpu"]
    assert facts["device"]
    assert json.loads(str(facts["parameters"])) == {"seed": 3, "capacities": [1, 2], "tiers": {"host": 5}}
    assert all(isinstance(value, str | int | float) for value in facts.values())
    assert facts == provenance(tiers={"host": 5}, capacities=(1, 2), seed=3), "order of parameters must not matter"


def test_provenance_names_the_trace() -> None:
    from dynalab.workload.trace import Trace

    trace = Trace(
        arrival=np.array([0.0, 1.0]),
        input_tokens=np.array([5, 6], np.int32),
        output_tokens=np.array([1, 1], np.int32),
        source="somewhere",
        sha256="ab" * 32,
    )
    facts = provenance(trace)
    assert (facts["trace_source"], facts["trace_sha256"], facts["trace_requests"]) == ("somewhere", "ab" * 32, 2)


def test_stamp_keeps_what_the_data_set_says_of_itself() -> None:
    stamped = stamp(xr.Dataset(attrs={"device": "host-emulated", "mine": 1}), seed=1)
    assert stamped.attrs["device"] == "host-emulated"
    assert stamped.attrs["mine"] == 1
    assert stamped.attrs["parameters"] == '{"seed": 1}'


def test_git_revision_is_that_of_the_checkout() -> None:
    if not (ROOT / ".git").exists():
        assert module.git_revision() == ""
        return
    ask = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    before = subprocess.run(ask, capture_output=True, text=True, check=False)
    if before.returncode:
        pytest.skip("git does not read this checkout: " + before.stderr.strip())
    module.git_revision.cache_clear()
    revision = module.git_revision().removesuffix("-dirty")
    # Somebody may commit while the test runs: the commit before or after is right.
    after = subprocess.run(ask, capture_output=True, text=True, check=True)
    assert len(revision) >= 12
    assert any(head.stdout.startswith(revision) for head in (before, after))


def test_a_failing_tool_gives_no_fact() -> None:
    assert module._output(["false"]) == ""
    assert module._output(["no-such-tool-anywhere"]) == ""
    assert module._output(["printf", "first\nsecond\n"]) == "first"


def test_canonical_json_is_one_text_per_value() -> None:
    assert canonical_json({"b": (1, 2), "a": np.float64(0.5)}) == '{"a":0.5,"b":[1,2]}'
    assert canonical_json({"s": {"y", "x"}, "p": Path("/a")}) == '{"p":"/a","s":["x","y"]}'
