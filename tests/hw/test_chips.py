"""Chip files: whole, sourced, and refused where they are not."""

import copy
import json

import pytest

from lsd_jax.hw import chips


@pytest.mark.parametrize("name", chips.known())
def test_every_shipped_chip_is_valid_and_survives_a_round_trip(name):
    chip = chips.load(name)
    assert chip.numbers
    assert chips.parse(name, json.loads(json.dumps(chip.to_json()))) == chip


def test_the_neuron_cores_are_there():
    assert {"trn1", "trn2", "trn3"} <= set(chips.known())
    assert chips.load("trn2")["pe_clock"] == 2.4e9
    assert [chips.load(f"trn{i}")["generation"] for i in (1, 2, 3)] == [2, 3, 4]


@pytest.mark.parametrize("name", ["trn1", "trn2", "trn3"])
def test_the_tensor_engine_reaches_its_published_flops(name):
    chip = chips.load(name)
    assert 2 * 128 * 128 * chip["pe_clock"] == pytest.approx(chip["pe_flops_bf16"], rel=0.01)


def test_an_unknown_chip_or_number_names_those_known():
    with pytest.raises(ValueError, match="unknown chip 'trn9'; known: .*trn2"):
        chips.load("trn9")
    with pytest.raises(ValueError, match="no number 'warp_clock'; it has: .*pe_clock"):
        chips.load("trn2")["warp_clock"]


def test_a_chip_may_be_a_file(tmp_path):
    path = tmp_path / "trn2-mine.json"
    path.write_text(json.dumps(chips.load("trn2").to_json()))
    found = chips.load(str(path))
    assert found.name == "trn2-mine" and found.numbers == chips.load("trn2").numbers
    path.write_text("{")
    with pytest.raises(ValueError, match="trn2-mine.json is no JSON"):
        chips.load(str(path))
    with pytest.raises(FileNotFoundError):
        chips.load(str(tmp_path / "absent.json"))


def test_the_band_has_a_fast_and_a_slow_end():
    rate = chips.Number(5.0, "B/s", "s", "assumed", 4.0, 6.0)
    cost = chips.Number(5.0, "cycles/element", "s", "assumed", 4.0, 6.0)
    assert [n.at("fast").value for n in (rate, cost)] == [6.0, 4.0]
    assert [n.at("slow").value for n in (rate, cost)] == [4.0, 6.0]
    certain = chips.Number(5.0, "ns", "s", "published")
    assert certain.at("slow") == certain
    chip = chips.load("trn2")
    assert chip.at("fast")["dve_tt_fp32"] < chip["dve_tt_fp32"] < chip.at("slow")["dve_tt_fp32"]


GOOD = {
    "description": "a chip",
    "numbers": {"clock": {"value": 1e9, "unit": "Hz", "source": "its maker", "kind": "published"}},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": ""}, "chip x, clock: source is empty"),
        ({"kind": "hoped"}, "unknown kind 'hoped'; known: measured, published, assumed"),
        ({"value": "fast"}, "value is no number"),
        ({"value": True}, "value is no number"),
        ({"value": float("nan")}, "must be finite"),
        ({"value": -1}, "not negative"),
        ({"low": 1}, "both low and high"),
        ({"low": 2e9, "high": 3e9}, "low <= value <= high"),
        ({"low": 0, "high": 0}, "low <= value <= high"),
        ({"value": 0}, "want more than 0 Hz"),
        ({"low": 0, "high": 2e9}, "want more than 0 Hz"),
        ({"colour": "red"}, "unknown colour"),
        ({"unit": None}, "unit is empty"),
    ],
)
def test_a_bad_number_is_refused_by_name(change, message):
    bad = copy.deepcopy(GOOD)
    bad["numbers"]["clock"].update(change)
    with pytest.raises(ValueError, match=message):
        chips.parse("x", bad)


def test_a_bad_file_is_refused():
    assert chips.parse("x", GOOD)["clock"] == 1e9
    changes = ({"more": 1}, {"numbers": []}, {"numbers": {"a": 1}})
    for bad in ([], {}, *({**GOOD, **change} for change in changes)):
        with pytest.raises(ValueError, match="chip x"):
            chips.parse("x", bad)
    lacking = {**GOOD, "numbers": {"clock": {"value": 1}}}
    with pytest.raises(ValueError, match="lacks kind, source, unit"):
        chips.parse("x", lacking)


@pytest.mark.parametrize("name", ["v5e", "v5p", "v6e", "tpu7x"])
def test_the_matrix_units_of_a_tpu_reach_their_published_flops(name):
    chip = chips.load(name)
    assert 2 * chip["macs_bf16"] * chip["clock"] == pytest.approx(chip["flops_bf16"], rel=1e-3)
    assert 0.9e9 < chip["clock"] < 2.5e9
    rows = chip["macs_bf16"] / (chip["mxus"] * chip["mxu_width"] ** 2)
    assert rows == {128: 1, 256: 2}[chip["mxu_width"]]
