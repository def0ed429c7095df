"""What ``replay_tiers`` refuses, in one line that names the culprit and the cure, and what it makes of sizes."""

from __future__ import annotations

import numpy as np
import pytest

from dynalab.cache import Tier, replay_tiers
from dynalab.errors import ConfigError, TraceError
from dynalab.workload import Trace, model_spec

HOST = {"device": 2, "host": 5}


@pytest.fixture(scope="module")
def trace() -> Trace:
    rows = [[0, 1, 2], [0, 1, 3], [4, 5], [0, 1, 2, 6], [4, 5, 7]]
    return Trace.from_columns(
        np.arange(5) * 2.0,
        [16 * len(row) for row in rows],
        [1] * 5,
        [block for row in rows for block in row],
        block_tokens=16,
    )


def refused(trace: Trace, message: str, tiers: object = None, **options: object) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        replay_tiers(trace, HOST if tiers is None else tiers, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "writethrough"}, r"mode: 'writethrough' does not exist; did you mean 'write_through'\? choose from"),
        ({"mode": None}, "mode: None does not exist"),
        ({"admit_after": 0}, "admit_after: 0 uses; give at least 1"),
        ({"match": "all"}, "match: 'all' does not exist; choose from prefix, any"),
        ({"touch": "none"}, "touch: 'none' does not exist; choose from served, all"),
        ({"disk_path": "gds"}, "disk_path: 'gds' does not exist; choose from staged, direct"),
        ({"window": 0}, "window: 0 s is not a positive time"),
        ({"window": float("nan")}, "window: nan s is not a positive time"),
        ({"priority": [1, 2]}, "priority: 2 values for 8 blocks; give one per block"),
        ({"model": "llama-9"}, r"model: 'llama-9' is not in the table; did you mean"),
        ({"hardware": "h9000"}, r"hardware: 'h9000' is not in the table; did you mean"),
    ],
)
def test_bad_options(trace, options, message):
    refused(trace, message, **options)


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ({"hbm": 5}, "tiers: 'hbm' is not a tier; choose from device, host, disk"),
        ([Tier("host", 1), Tier("host", 2)], "tiers: 'host' is given twice"),
        ({"host": -1}, r"host: -1 blocks; give 0 \(no such tier\) or more"),
        ({"disk": "-4TB"}, "disk: '-4TB' is negative"),
        ({"disk": "4 pieces"}, "disk: '4 pieces' is not a size"),
        ([Tier("host", 1, policy="lruu")], r"policy: 'lruu' does not exist; did you mean 'lru'\?"),
        ([Tier("disk", 1, policy="belady")], "disk: policy 'belady' needs the future"),
        (
            [Tier("host", 1, admission="frequencyy")],
            r"admission: 'frequencyy' does not exist; did you mean 'frequency'",
        ),
        ([Tier("host", 1, admission="after", min_frequency=0)], "min_frequency: 0 would admit unseen blocks"),
        ([Tier("host", 1, admission="frequency", flush_interval=0)], "flush_interval: 0 s is not a positive time"),
        ([Tier("host", 1, admission="frequency", max_entries=0)], "max_entries: 0 leaves no room to count"),
    ],
)
def test_bad_tiers(trace, tiers, message):
    refused(trace, message, tiers, model="llama-3-8b")


@pytest.mark.parametrize("capacity", [2.5, float("nan"), 1e30, 2**70, None], ids=str)
def test_capacities_that_are_no_block_counts(trace, capacity):
    refused(trace, "host: .*blocks", {"host": capacity})


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"mode": "selective", "admit_after": 1.5}, "admit_after"),
        ({"mode": "selective", "admit_after": float("nan")}, "admit_after"),
        ({"window": float("inf"), "model": "llama-3-8b"}, "window"),
        ({"window": 1e-12}, "window"),
        ({"priority": [float("nan")] * 8}, "priority"),
        ({"priority": ["high"] * 8}, "priority"),
        ({"tiers": ["device"]}, "tiers"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_options_that_are_no_numbers_of_their_kind(trace, options, culprit):
    refused(trace, f"{culprit}: ", **options)


def test_a_trace_without_ids_is_refused_with_the_way_out():
    bare = Trace.from_columns([0.0, 1.0], [100, 200], [1, 1])
    for options in ({}, {"model": "llama-3-8b"}):
        with pytest.raises(TraceError, match=r"no block ids.*with_prefixes"):
            replay_tiers(bare, HOST, **options)


# ---------------------------------------------------------------------------- bytes


def test_sizes_in_bytes_need_a_model(trace):
    refused(trace, r"host: '512GiB' is a size in bytes; give model=\.\.\. to turn it into blocks", {"host": "512GiB"})


def test_sizes_in_bytes_are_whole_blocks(trace):
    block = model_spec("llama-3-8b").block_bytes(16)
    assert block == 16 * 131_072
    tiers = {"device": str(3 * block - 1), "host": f"{3 * block}", "disk": "1GiB"}
    ds = replay_tiers(trace, tiers, model="llama-3-8b")
    assert ds.capacity_blocks.values.tolist() == [2, 3, 2**30 // block]
    assert ds.capacity_bytes.values.tolist() == [2 * block, 3 * block, 2**30 // block * block]
    as_blocks = replay_tiers(trace, dict(zip(("device", "host", "disk"), [2, 3, 512], strict=True)), model="llama-3-8b")
    assert as_blocks.identical(ds)


def test_without_a_model_nothing_is_measured_in_bytes_or_seconds(trace):
    bare = replay_tiers(trace, HOST, per_request=True)
    full = replay_tiers(trace, HOST, per_request=True, model="llama-3-8b")
    physical = {name for name in full if {"bytes", "bytes/s", "s", "TB/day", "1/day", "years"} & {full[name].units}}
    assert {"moved_bytes", "capacity_bytes", "bandwidth_mean", "bandwidth_peak", "ttft", "ttft_mean"} <= physical
    assert not physical & set(bare)
    # What is left is the same with and without.
    assert all(bare[name].identical(full[name]) for name in bare)
    assert set(full) - set(bare) == physical | {"break_even_tokens", "requests_slowed"}


def test_tiers_may_come_in_any_order(trace):
    tiers = [Tier("disk", 7, "arc"), Tier("device", 2), Tier("host", 4, "sieve")]
    given, from_the_top = replay_tiers(trace, tiers), replay_tiers(trace, [tiers[1], tiers[2], tiers[0]])
    assert given.identical(from_the_top)


def test_the_disk_path_defaults_to_that_of_the_hardware(trace):
    from dynalab.workload import hardware_spec

    tiers = {"device": 1, "host": 2, "disk": 8}
    for path in ("staged", "direct"):
        machine = hardware_spec("h100-sxm", disk_path=path)
        default, explicit = replay_tiers(trace, tiers, hardware=machine), replay_tiers(trace, tiers, disk_path=path)
        assert default.attrs["disk_path"] == path
        assert default.moved_blocks.identical(explicit.moved_blocks)
        used = default.moved_blocks.sel(edge=["disk_to_host", "disk_to_device"]).values
        assert (used > 0).tolist() == [path == "staged", path == "direct"]
