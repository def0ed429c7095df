"""Hardware facts: sourced, replaceable, and turned into seconds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dynalab.errors import ConfigError
from dynalab.workload.hardware import HARDWARE, HardwareSpec, hardware_spec
from dynalab.workload.models import MODELS

NUMBERS = sorted(set(HardwareSpec.model_fields) - {"name", "sources", "disk_path"})


def test_the_table_holds_what_the_data_sheets_say():
    facts = {name: (spec.peak_flops, spec.hbm_bytes, spec.hbm_bandwidth) for name, spec in HARDWARE.items()}
    assert facts == {
        "a100-80gb": (312e12, 80e9, 2.039e12),
        "h100-sxm": (989.4e12, 80e9, 3.35e12),
        "h200-sxm": (989.4e12, 141e9, 4.8e12),
        "b200": (2250e12, 180e9, 7.7e12),
        "gb200": (2500e12, 186e9, 8e12),
        "l40s": (362e12, 48e9, 864e9),
        "l4": (121e12, 24e9, 300e9),
        "a10g": (70e12, 24e9, 600e9),
    }


def test_links_stay_below_what_their_bus_can_carry():
    assert HARDWARE["h100-sxm"].d2h == pytest.approx(0.79 * 63.0e9, rel=0.01)
    assert all(spec.h2d < 63.0e9 for name, spec in HARDWARE.items() if name != "gb200")
    assert 63.0e9 < HARDWARE["gb200"].h2d < 450e9


@pytest.mark.parametrize("name", HARDWARE)
@pytest.mark.parametrize("field", NUMBERS)
def test_every_number_has_a_description_and_a_source(name, field):
    assert len(HardwareSpec.model_fields[field].description) > 15
    source = HARDWARE[name].source(field)
    assert source.startswith(("NVIDIA", "measured", "assumption: ", "default: "))


def test_what_the_caller_gives_is_said_to_be_the_callers():
    spec = hardware_spec("h100-sxm", h2d="25GB/s", mfu=0.4)
    assert spec.source("h2d") == spec.source("mfu") == "given by the caller"
    assert spec.source("d2h") == HARDWARE["h100-sxm"].source("d2h")
    assert hardware_spec(spec, d2h=1e9).source("h2d") == "given by the caller"
    mine = hardware_spec("h100-sxm", h2d=3e10, sources={"h2d": "measured here"})
    assert mine.source("h2d") == "measured here"
    with pytest.raises(ConfigError, match="'h2h' is no field of it; write one of name, gpus"):
        spec.source("h2h")


def test_sizes_bandwidths_and_durations_may_be_text():
    spec = hardware_spec("h100-sxm", hbm_bytes="96GiB", h2d="25 GB/s", disk_latency="80us", disk_bytes="15.36TB")
    assert (spec.hbm_bytes, spec.h2d, spec.disk_latency, spec.disk_bytes) == (96 * 2**30, 25e9, 80e-6, 15_360 * 10**9)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("h2d", "50Gbps", "h2d: '50Gbps' is not a bandwidth; write \"50GB/s\""),
        ("h2d", 0, "h2d: 0 is not above zero"),
        ("hbm_bytes", "-1GiB", "hbm_bytes: '-1GiB' is negative"),
        ("hbm_bytes", 0, "hbm_bytes: 0: input should be greater than 0"),
        ("disk_latency", "soon", "disk_latency: 'soon' is not a duration"),
        ("mfu", 1.5, "mfu: 1.5: input should be less than or equal to 1"),
        ("mfu", float("nan"), "mfu: nan"),
        ("gpus", 0, "gpus: 0: "),
        ("disk_path", "teleport", "disk_path: 'teleport': input should be 'staged' or 'direct'"),
        ("h2h", 1e9, "h2h is no field of it; write one of name, gpus"),
        ("price_host", -1, "price_host: -1: "),
    ],
)
def test_absurd_values_are_refused_by_name(field, value, why):
    with pytest.raises(ConfigError) as caught:
        hardware_spec("h100-sxm", **{field: value})
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("written", ["h100-sxm", "H100", " h100_sxm ", "NVIDIA H100 80GB HBM3", "nvidia-h100"])
def test_names_are_forgiving(written):
    assert hardware_spec(written) is HARDWARE["h100-sxm"]


def test_an_unknown_name_comes_with_close_ones_and_the_way_out():
    with pytest.raises(ConfigError) as caught:
        hardware_spec("h100-sxmm")
    message = str(caught.value)
    assert message.startswith("hardware: 'h100-sxmm' is not in the table; did you mean h100-sxm")
    assert "base: h100-sxm" in message
    assert "\n" not in message
    for bad in ("", None, 7, True):
        with pytest.raises(ConfigError, match="is not a GPU"):
            hardware_spec(bad)


def test_files_and_dictionaries_describe_machines(tmp_path):
    path = tmp_path / "node.yaml"
    path.write_text("base: h200\ngpus: 8\nh2d: 40GB/s\n")
    spec = hardware_spec(str(path), disks=4)
    assert (spec.name, spec.gpus, spec.h2d, spec.disks) == ("h200-sxm", 8, 40e9, 4)
    assert hardware_spec(path).hbm_bytes == 141 * 10**9
    assert hardware_spec({"base": "l4", "name": "mine"}).name == "mine"
    full = {key: value for key, value in dict(spec).items() if key != "sources"}
    again = hardware_spec(full)
    assert again.load_seconds(10**9, "disk") == spec.load_seconds(10**9, "disk")
    assert again.source("hbm_bytes") == "given by the caller"
    with pytest.raises(ConfigError, match="peak_flops is missing"):
        hardware_spec({"name": "mine"})


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "is not YAML"), ("- 1\n", "holds no fields"), ("", "holds no fields"), (None, "cannot be read")],
)
def test_files_that_describe_nothing(tmp_path, text, why):
    path = tmp_path / "node.yml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        hardware_spec(path)
    assert str(caught.value).startswith(f"{path}: {why}")
    assert "\n" not in str(caught.value)


def test_loading_is_latency_plus_bytes_over_the_narrowest_part():
    spec = hardware_spec(
        "h100-sxm", h2d=50e9, disk_to_host=5e9, link_latency=1e-5, disk_latency=1e-4, host_memory_bandwidth=300e9
    )
    assert spec.load_seconds(50 * 10**9, "host") == pytest.approx(1 + 1e-5)
    assert spec.load_seconds(5 * 10**9, "disk") == pytest.approx(1 + 1.1e-4)
    assert spec.load_seconds(0, "disk") == 0.0
    # Eight links are wider than the host's memory, twenty disks wider than half of it unless they bypass it.
    assert hardware_spec(spec, gpus=8).load_bandwidth("host") == 300e9
    assert hardware_spec(spec, gpus=8, disks=40).load_bandwidth("disk") == 150e9
    assert hardware_spec(spec, gpus=8, disks=40, disk_path="direct").load_bandwidth("disk") == 200e9
    assert hardware_spec(spec, gpus=1, disks=40, disk_path="direct").load_bandwidth("disk") == 50e9


def test_bad_paths_and_sizes():
    spec = HARDWARE["h100-sxm"]
    with pytest.raises(ConfigError, match="path: 'tape' is not a tier to load from; write 'host' or 'disk'"):
        spec.load_seconds(1, "tape")
    for bad in (-1, float("nan"), np.array([1.0, -1.0])):
        with pytest.raises(ConfigError, match="nbytes: "):
            spec.load_seconds(bad, "host")


@given(
    st.sampled_from(sorted(HARDWARE)),
    st.sampled_from(["host", "disk"]),
    st.integers(0, 2**45),
    st.integers(0, 2**45),
    st.integers(1, 8),
)
def test_more_bytes_never_load_sooner_nor_more_gpus_later(name, path, nbytes, more, gpus):
    one, many = hardware_spec(name), hardware_spec(name, gpus=gpus)
    assert one.load_seconds(nbytes + more, path) >= one.load_seconds(nbytes, path)
    assert many.load_seconds(nbytes, path) <= one.load_seconds(nbytes, path)
    assert one.load_seconds(nbytes, "disk") >= one.load_seconds(nbytes, "host")


def test_prefill_is_flops_over_what_is_achieved():
    model, spec = MODELS["llama-3-8b"], HARDWARE["h100-sxm"]
    assert spec.prefill_seconds(model, 8192) == model.prefill_flops(8192) / (989.4e12 * 0.5)
    assert 0.2 < spec.prefill_seconds(model, 8192) < 0.4
    quarter = hardware_spec(spec, gpus=4).prefill_seconds(model, 8192)
    assert quarter == pytest.approx(spec.prefill_seconds(model, 8192) / 4)
    assert spec.prefill_seconds(model, 8192, 8192) > spec.prefill_seconds(model, 8192)


def test_arrays_give_what_scalars_give():
    model, spec = MODELS["gpt-oss-20b"], HARDWARE["l4"]
    tokens = np.array([0, 1, 512, 100_000])
    assert spec.prefill_seconds(model, tokens, 3).tolist() == [spec.prefill_seconds(model, int(t), 3) for t in tokens]
    assert spec.load_seconds(tokens, "disk").tolist() == [spec.load_seconds(int(t), "disk") for t in tokens]
    assert type(spec.load_seconds(1, "host")) is float
    assert type(spec.prefill_seconds(model, 1)) is float


def test_endurance_is_writes_per_day_times_capacity_times_warranty():
    spec = hardware_spec("h100-sxm", disk_bytes="7.68TB", disk_dwpd=1, disks=2)
    assert spec.disk_endurance_bytes == 2 * 7.68e12 * 365 * 5


def test_specs_are_frozen():
    with pytest.raises(ValidationError):
        HARDWARE["l4"].gpus = 2
