"""Plans: they add up, they agree with the kernels' own models, they refuse by how much."""

import json
from dataclasses import replace

import pytest

from lsd_jax import config as configs
from lsd_jax.cli import info
from lsd_jax.cli.main import main
from lsd_jax.cli.plan import smallest
from lsd_jax.hw import capacity, chips, roofline
from lsd_jax.hw.memory import held, parameters
from lsd_jax.hw.plan import ROUGH_ERROR, plan_frame
from lsd_jax.hw.stack import stack_of
from lsd_jax.hw.work import REMEMBERING, elementwise, matmul
from nki_kernels import bench as nki
from nki_kernels.sim.timeline import schedule
from pallas_kernels import bench as pallas
from pallas_kernels.tpu.planner import choose, choose_cycles

V6E, TRN2 = chips.load("v6e"), chips.load("trn2")
REFERENCE = configs.load("reference")
TEN_HEADS = ["model.heads=10", "model.head_width=128", "model.mlp=5120"]


@pytest.mark.parametrize("weights", ["", "int8", "float8_e4m3"])
@pytest.mark.parametrize(
    ("name", "kv_heads"),
    [("micro", 0), ("tiny", 1), ("small", 0), ("base", 2), ("lucy_1080p", 0), ("lucy_1080p", 4)],
)
def test_what_is_held_is_what_the_arrays_are(name, kv_heads, weights):
    settings = [f"stream.weight_dtype={weights}", f"model.kv_heads={kv_heads}"]
    config = configs.override(configs.load(name), settings)
    sizes, kept = info.sizes(config), held(config)
    assert parameters(config.model) == sizes["parameters"]
    assert kept.weights == sizes["weight_bytes"]
    assert kept.state == pytest.approx(sizes["state_bytes_per_session"], rel=1e-3)
    assert held(config, 3).state == 3 * kept.state


def test_a_roofline_by_hand():
    rates = roofline.rates(V6E)
    product = matmul("p", 4096, 4096, 4096, "bfloat16", times=3)
    seconds, bound = roofline.operation_seconds(product, rates)
    assert bound == "MXU" and seconds == pytest.approx(3 * 2 * 4096**3 / (0.5 * 918e12))
    narrow, _ = roofline.operation_seconds(matmul("upsample", 4096, 4096, 48, "float32"), rates)
    whole, _ = roofline.operation_seconds(matmul("upsample", 4096, 4096, 256, "float32"), rates)
    assert narrow == whole  # a matrix unit is filled in whole
    plain, exact = (
        roofline.operation_seconds(matmul(name, 4096, 4096, 4096, dtype), rates)[0]
        for name, dtype in (("p", "float32"), ("upsample rows", "float32"))
    )
    assert 3 * plain == pytest.approx(seconds) and exact == pytest.approx(6 * plain)
    seconds, bound = roofline.operation_seconds(elementwise("e", 10**9, 1, "bfloat16"), rates)
    assert bound == "HBM" and seconds == pytest.approx(4e9 / 1.64e12)
    assert roofline.operation_seconds(matmul("t", 8, 8, 8, "bfloat16"), rates)[1] == "latency"


def test_the_stack_takes_what_its_kernel_says():
    plan = plan_frame(REFERENCE, V6E)
    stages = {stage.name: stage for stage in plan.stages}
    shape = stack_of(REFERENCE.model, "bfloat16")
    cycles = choose(shape, "v6e").total.cycles
    assert stages["pass 0: stack"].ms == pytest.approx(1e3 * cycles / V6E["clock"])
    assert plan.ms == pytest.approx(sum(stage.ms for stage in plan.stages))
    assert plan.fits and plan.kind == "modelled"


def test_both_cores_of_a_v5p_are_one_device_of_one_stream():
    """They share a stack by HBM, without links; several chips have whole devices."""
    v5p = chips.load("v5p")
    config = configs.load("reference")
    assert capacity.share_counts(config, v5p, 1) == [1, 2]
    assert capacity.share_counts(config, v5p, 2) == [1, 2, 4]
    ten = configs.override(configs.load("base"), TEN_HEADS)  # five devices, by one core of each
    assert capacity.share_counts(ten, v5p, 5) == [1, 2, 4, 10]
    assert plan_frame(ten, v5p, 10).ms < plan_frame(ten, v5p, 4).ms < plan_frame(ten, v5p).ms
    with pytest.raises(ValueError, match="3 cores are no whole devices of 2 each"):
        plan_frame(ten, v5p, 3)
    assert capacity.share_counts(config, chips.load("tpu7x"), 2) == [1, 2, 4]
    shape = stack_of(config.model, "bfloat16")
    alone, both = choose(shape, "v5p").total.cycles, choose(shape, "v5p", cores=2).total.cycles
    both_ms = 1e3 * both / v5p["clock"]
    stages = {stage.name: stage for stage in plan_frame(config, v5p, 2).stages}
    assert stages["pass 0: stack"].ms == pytest.approx(both_ms)
    few = stack_of(configs.load("tiny").model, "bfloat16")  # shares that are sooner added up alone
    assert choose(few, "v5p").total.cycles < choose(few, "v5p", cores=2).total.cycles
    found = pallas.stacks_seconds([shape, few], v5p, 2)
    one_by_one = [pallas.stack_seconds(each, v5p, 2)[0] for each in (shape, few)]
    assert found == pytest.approx(one_by_one)
    assert found == pytest.approx([both_ms / 1e3, choose(few, "v5p").total.cycles / v5p["clock"]])
    assert both < 0.85 * alone
    in_turn = int(1000 / 30 / plan_frame(config, v5p, 2).ms)
    assert capacity.sessions_per_chip(config, v5p, 30) >= in_turn


@pytest.mark.parametrize("weights", ["", "float8_e4m3"])
@pytest.mark.parametrize("name", ["reference", "small", "lucy_1080p"])
def test_rough_plans_know_their_error_and_mislead_nobody(name, weights):
    config = configs.override(configs.load(name), [f"stream.weight_dtype={weights}"])
    for chip, chips_of_it in ((V6E, 8), (TRN2, 2), (chips.load("cpu"), 1)):
        counts = capacity.share_counts(config, chip, chips_of_it)
        plans = [plan_frame(config, chip, ranks) for ranks in counts]
        for plan in plans:
            rough = plan_frame(config, chip, plan.ranks, rough=True)
            assert rough.range_ms[0] <= plan.ms <= rough.range_ms[1]
            assert rough.error in ((0, ROUGH_ERROR) if chip is TRN2 else (0,))
            assert capacity.sure(config, chip, plan.ms, plan.ranks).error == 0
            assert (rough.held, rough.room_bytes) == (plan.held, plan.room_bytes)
        assert capacity.fastest(config, chip, chips_of_it).ms == min(plan.ms for plan in plans)


def test_a_plan_for_a_trainium_takes_two_timelines(capsys):
    """Those of what it shows; each takes a third of a second, and more for fewer cores."""
    nki.layers_timed.cache_clear()
    assert main(["plan", "base", "--chip", "trn2"]) == 0
    assert nki.layers_timed.cache_info().misses == 2
    said = capsys.readouterr().out
    assert "would help: weights in float8_e4m3" in said and "(wants training anew)" in said


def test_eight_bits_are_planned_and_proposed_where_they_help():
    v5e, base = chips.load("v5e"), configs.load("base")
    eight = configs.override(base, ["stream.weight_dtype=int8"])
    fast, now = plan_frame(eight, v5e), plan_frame(base, v5e)
    assert fast.ms < 0.8 * now.ms and fast.held.weights < now.held.weights
    proposed = {change.what: change.ms for change in capacity.helpful(base, v5e, now, most=99)}
    assert proposed["weights in int8"] == pytest.approx(fast.ms)
    small = configs.override(configs.load("small"), ["stream.compute_dtype=bfloat16"])
    proposed = capacity.helpful(small, TRN2, plan_frame(small, TRN2), most=99)
    assert "weights in float8_e4m3" in [change.what for change in proposed]
    left = plan_frame(eight, chips.load("tpu7x"))
    assert any("tpu7x has no matrix unit for int8" in note for note in left.notes)


@pytest.mark.parametrize(
    ("name", "ranks", "commit"), [("tiny", 1, False), ("reference", 2, False), ("tiny", 1, True)]
)
def test_a_few_layers_of_a_timeline_stand_for_all_of_it(name, ranks, commit):
    """Within 5 % of the timeline of all layers on a Trainium2; it is in fact the same."""
    stack = stack_of(configs.load(name).model, "bfloat16", commit=commit)
    shapes = nki.shapes_of(configs.load(name).model, TRN2, ranks, commit=commit)
    whole = schedule([nki.trace(shapes, TRN2)], TRN2)[0].total_ns
    seconds, _, how = nki.stack_seconds(stack, TRN2, ranks)
    assert seconds * 1e9 == pytest.approx(whole, rel=0.01)
    assert f"{ranks} core" in how


def test_many_plans_at_once_are_those_one_by_one():
    base = stack_of(configs.load("small").model, "bfloat16")
    shapes = [
        replace(base, dim=dim, heads=dim // 128, mlp=dim * ratio, tokens=tokens, slots=slots)
        for dim in (128, 384, 1024)
        for ratio in (1, 4)
        for tokens in (64, 256)
        for slots in (1, 5)
    ]
    shapes.append(replace(base, tokens=1000))  # filled up
    shapes.append(replace(base, tokens=100))  # refused
    cycles = choose_cycles(shapes, V6E)
    assert cycles[-1] == float("inf")
    one_by_one = [choose(shape, "v6e").total.cycles for shape in shapes[:-1]]
    assert cycles[:-1] == pytest.approx(one_by_one)


def test_a_stack_that_the_kernel_refuses_is_planned_by_xla_and_says_so():
    odd = configs.override(REFERENCE, ["model.head_width=128", "model.dim=500"])
    plan = plan_frame(odd, V6E)
    assert "by XLA (the kernel refuses: dim=500 is no multiple of 128" in plan.notes[0]
    assert plan.ms > plan_frame(REFERENCE, V6E).ms


def test_sharing_a_stream_pays_for_its_links():
    lucy = configs.load("lucy_1080p")
    one, eight = plan_frame(lucy, V6E), plan_frame(lucy, V6E, ranks=8)
    assert one.ms / 8 < eight.ms < one.ms / 3
    with pytest.raises(ValueError, match="16 heads of keys and 8192 MLP features do not share 3"):
        plan_frame(lucy, V6E, ranks=3)
    odd = configs.override(lucy, ["model.mlp=4097"])
    with pytest.raises(ValueError, match="4097 MLP features do not share 2 cores"):
        plan_frame(odd, V6E, ranks=2)
    assert capacity.share_counts(odd, V6E, 10**9) == [1]
    assert capacity.share_counts(lucy, V6E, 10**9) == [1, 2, 4, 8, 16]


def test_sessions_of_a_chip_are_the_most_that_hold_the_rate():
    sessions = capacity.sessions_per_chip(REFERENCE, V6E, 30)
    assert sessions > 30
    faster = capacity.sessions_per_chip(REFERENCE, V6E, 60)
    assert 0.4 * sessions < faster < 0.6 * sessions
    assert capacity.sessions_per_chip(configs.load("lucy_1080p"), V6E, 30) == 1
    assert capacity.sessions_per_chip(configs.load("lucy_1080p"), V6E, 60) == 0
    chips_wanted, plan = capacity.chips_needed(configs.load("lucy_1080p"), V6E, 60)
    assert chips_wanted > 1 and plan.ms <= 1000 / 60


def test_changes_that_help_are_sorted_and_do_help():
    slow = configs.override(REFERENCE, ["stream.passes=4", "stream.compute_dtype=float32"])
    plan = capacity.fastest(slow, V6E)
    now, changes = plan.ms, capacity.helpful(slow, V6E, plan)
    assert len(changes) == 3 and changes == sorted(changes, key=lambda change: change.ms)
    assert all(change.ms < now for change in changes)
    assert "bfloat16 instead of float32" in [change.what for change in changes]


def test_fewer_heads_of_keys_are_proposed_and_want_training_anew():
    base = configs.load("base")
    whole = capacity.helpful(base, V6E, plan_frame(base, V6E), most=99)
    proposed = {change.what: change for change in whole}
    shared = configs.override(base, ["model.kv_heads=2"])
    assert proposed["kv_heads 4 to 2"].ms == pytest.approx(plan_frame(shared, V6E).ms)
    assert proposed["kv_heads 4 to 2"].anew and not proposed["weights in int8"].anew
    changes = capacity.helpful(base, V6E, plan_frame(base, V6E, ranks=4), most=99)
    assert "kv_heads 4 to 2" not in [change.what for change in changes]  # each core has one head
    alone = configs.override(base, ["model.kv_heads=1"])
    assert not any(what.startswith("kv_heads") for what, _ in capacity.variations(alone, V6E))


def test_what_a_trainium_is_told_roughly_is_near_its_exact_plans():
    small = configs.override(configs.load("small"), ["stream.compute_dtype=bfloat16"])
    plan, variations = plan_frame(small, TRN2), dict(capacity.variations(small, TRN2))
    changes = capacity.helpful(small, TRN2, plan, most=99)
    assert len(changes) > 3 and plan.error == 0
    for change in changes:
        assert change.ms == pytest.approx(plan_frame(variations[change.what], TRN2).ms, rel=0.08)
    for fps in (100, 170):
        sessions = capacity.sessions_together(small, TRN2, 1, fps)
        assert plan_frame(small, TRN2, 1, sessions).ms <= 1000 / fps
        assert plan_frame(small, TRN2, 1, sessions + 1).ms > 1000 / fps


def test_the_command_reports(tmp_path, capsys):
    report, picture = tmp_path / "plan.json", tmp_path / "new" / "plan.png"
    arguments = ["plan", "base", "--chip", "v6e", "--price", "3", "--json", str(report)]
    assert main([*arguments, "--plot", str(picture)]) == 0
    found = json.loads(report.read_text())
    assert found["fits"] and found["kind"] == "modelled"
    assert sum(stage["ms"] for stage in found["stages"]) == pytest.approx(found["ms_per_frame"])
    assert found["stages"][0].keys() == {"name", "ms", "bound_by", "kind"}
    assert found["cost_per_stream_hour"] == pytest.approx(3 / found["sessions_per_chip"])
    behind = {s["name"]: s["ms"] for s in found["stages"] if s["name"] in REMEMBERING}
    assert len(behind) == len(REMEMBERING)
    found_behind = found["ms_per_frame"] - found["ms_to_picture"]
    assert found_behind == pytest.approx(sum(behind.values())) and found_behind > 0.5
    assert found["bytes_held"] > 1e9
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "would help: " in capsys.readouterr().out


def test_a_chip_may_be_a_file_of_ones_own(tmp_path):
    report = tmp_path / "plan.json"
    faster = replace(V6E.numbers["clock"], value=2 * V6E["clock"])
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(V6E.with_numbers({"clock": faster}).to_json()))
    assert main(["plan", "base", "--chip", str(path), "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["chip"] == "mine"
    assert found["ms_per_frame"] < plan_frame(configs.load("base"), V6E).ms


def test_a_chip_may_not_know_its_memory(capsys):
    cpu = chips.load("cpu")
    numbers = {name: number for name, number in cpu.numbers.items() if name != "memory_bytes"}
    fitted = replace(cpu, numbers=numbers)
    tiny = configs.load("tiny")
    held = capacity.sessions_per_chip(tiny, fitted, 5)
    assert held == capacity.sessions_per_chip(tiny, cpu, 5) == int(200 / plan_frame(tiny, cpu).ms)


def test_what_does_not_fit_says_by_how_much(tmp_path, capsys):
    report = tmp_path / "plan.json"
    huge = ["--set", "model.layers=400", "--json", str(report)]
    assert main(["plan", "lucy_1080p", "--chip", "v5e", *huge]) == 0
    assert not json.loads(report.read_text())["fits"]
    said = capsys.readouterr().out
    assert "does not hold 30 fps" in said and "times the 33.33 ms" in said
    assert "does not fit: " in said and "GB more than 15.48 GB" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chip", "v9"], "unknown chip 'v9'; known: "),
        (["--chip", "v6e", "--fps", "0"], "--fps 0.0: give more than 0"),
        (["--chip", "v6e", "--fps", "1e-320"], "give more than 0, and a finite number"),
        (["--chip", "v6e", "--fps", "inf"], "--fps inf: give more than 0, and a finite number"),
        (["--chip", "v6e", "--chips", "0"], "--chips 0: give at least 1"),
        (["--chip", "v6e", "--price", "-1"], "--price -1.0: give at least 0"),
        (["--chip", "cpu", "--price", "inf"], "--price inf: give at least 0, and a finite number"),
        (
            ["--chip", "all", "--chips", "1", "--price", "0", "--plot", "absent/a.png"],
            "--chip all takes no --chips, --price, --plot: name one chip for that",
        ),
        (["--chip", "cpu", "--set", "stream.backend=nki"], "stream.backend=nki is not planned"),
        (["--chip", "v6e", "--set", "stream.backend=nki"], "stream.backend=nki is not planned"),
    ],
)
def test_bad_input_is_refused_in_a_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "tiny", *arguments, "--json", "plan.json"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_size_may_be_as_large_as_any(tmp_path):
    report, dim = tmp_path / "plan.json", 10**12
    wide = ["--set", f"model.dim={dim}", "--set", "model.head_width=128", "--json", str(report)]
    assert main(["plan", "tiny", "--chip", "cpu", *wide]) == 0
    assert json.loads(report.read_text())["bytes"]["weights"] > dim**2 > 2**63


def test_chips_that_are_too_slow_say_what_keeps_more_of_them_from_helping(monkeypatch):
    monkeypatch.setattr(chips, "known", lambda: ["cpu", "h200", "v5e"])
    small, large = (
        {row["chip"]: row for row in smallest(configs.load(name), 1e6)} for name in ("tiny", "base")
    )
    assert all(row["chips"] is None for row in small.values())
    assert [rows["v5e"]["cores"] for rows in (small, large)] == [1, 4]
    assert small["h200"]["reason"].startswith("more cores are no faster; ")
    most = "4 heads of keys, 5632 MLP features share no more cores than these; "
    assert large["v5e"]["reason"].startswith(most)
    assert "more cores" not in small["cpu"]["reason"]


def test_query_heads_that_share_keys_leave_room_for_more_sessions():
    """And take less time; as many cores can share a stream as divide the heads of keys."""
    whole = configs.override(configs.load("base"), TEN_HEADS)
    shared = configs.override(whole, ["model.kv_heads=2"])
    kept = [held(config) for config in (whole, shared)]
    assert kept[0].state == 5 * kept[1].state and kept[1].weights < kept[0].weights
    assert plan_frame(shared, V6E).ms < plan_frame(whole, V6E).ms
    sessions = [capacity.sessions_per_chip(config, V6E, 10) for config in (whole, shared)]
    assert sessions[0] < sessions[1]
    assert capacity.share_counts(shared, V6E, 8) == [1, 2]
    with pytest.raises(ValueError, match="2 heads of keys and .* do not share 5 cores"):
        plan_frame(shared, V6E, ranks=5)
    narrow = configs.override(shared, ["model.head_width=64"])
    offered = dict(capacity.variations(narrow, V6E))["heads of 128: 5 of them"].model
    assert (offered.heads, offered.kv_heads, offered.head_dim) == (5, 1, 128)


def test_heads_that_fill_the_matrix_units_of_a_chip_are_offered():
    base = configs.load("base")
    narrow, v5e = configs.override(base, TEN_HEADS), chips.load("v5e")
    offered = dict(capacity.variations(narrow, V6E))["heads of 256: 5 of them"]
    assert (offered.model.heads, offered.model.head_dim) == (5, 256)
    now, then = plan_frame(narrow, V6E), plan_frame(offered, V6E)
    assert then.ms < 0.93 * now.ms
    assert "heads of 256: 5 of them" in [c.what for c in capacity.helpful(narrow, V6E, now, most=0)]
    for config, chip in ((narrow, v5e), (base, V6E)):
        assert not any("heads of 256" in what for what, _ in capacity.variations(config, chip))


def test_a_ring_that_the_kernel_writes_is_not_copied_by_xla():
    base = configs.load("base")
    by = {"kernel": base, "XLA": configs.override(base, ["model.head_width=96", "model.dim=960"])}
    commit = {
        who: next(stage for stage in plan_frame(config, TRN2).stages if stage.name == "commit").ms
        for who, config in by.items()
    }
    assert commit["kernel"] < 0.2 * commit["XLA"]
