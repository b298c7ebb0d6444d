"""A refit finds the chip that a profile was made on."""

import pytest

from lsd_jax.config import load
from lsd_jax.hw import chips
from nki_kernels import bench
from nki_kernels.calibrate import refit
from nki_kernels.sim.timeline import schedule

TRN2 = chips.load("trn2")


@pytest.fixture(scope="module")
def trace():
    return bench.trace(bench.shapes_of(load("tiny").model, TRN2), TRN2)


def profile_of(chip, trace, **changed):
    timeline = schedule([trace], chip)[0]
    names = {"tensor_engine": "pe", "vector_engine": "dve", "gpsimd_engine": "pool"}
    summary = {f"{k}_active_time": timeline.busy_ns[v] / 1e9 for k, v in names.items()}
    return {"total_time": timeline.total_ns / 1e9, **summary, **changed}


def test_a_slower_chip_is_found_from_its_profile(trace):
    slower = TRN2.with_numbers({
        "pe_clock": chips.Number(1.2e9, "Hz", "half", "assumed"),
    })  # fmt: skip
    found = refit(TRN2, schedule([trace], TRN2)[0], profile_of(slower, trace), "a profile")
    assert found["pe_clock"] == pytest.approx(1.2e9)
    fitted = found.numbers["pe_clock"]
    assert fitted.kind == "assumed" and fitted.low is None
    assert fitted.source == "fit of the tensor_engine's busy time to a profile"
    assert found["dve_copy_fp32"] == pytest.approx(TRN2["dve_copy_fp32"])
    assert found["act_element"] == TRN2["act_element"]  # not in the profile
    assert chips.parse("trn2", found.to_json()) == found


def test_percentages_and_a_named_summary_will_do(trace):
    timeline = schedule([trace], TRN2)[0]
    summary = {
        "total_time": timeline.total_ns / 1e9,
        "scalar_engine_active_time_percent": 200 * timeline.busy("act"),
    }
    found = refit(TRN2, timeline, {"kernel": summary}, "a profile")
    assert found["act_element"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_time": 0}, "total_time is 0; want a positive number"),
        ({"tensor_engine_active_time": "long"}, "tensor_engine_active_time is 'long'"),
        ({"dma_active_time_percent": 120.0}, "dma_active_time_percent is 120"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(trace, change, message):
    with pytest.raises(ValueError, match=message):
        refit(TRN2, schedule([trace], TRN2)[0], profile_of(TRN2, trace, **change), "a profile")


def test_a_profile_of_nothing_is_refused(trace):
    with pytest.raises(ValueError, match="has none of tensor_engine_active_time"):
        refit(TRN2, schedule([trace], TRN2)[0], {"total_time": 1.0}, "a profile")
