"""The real TPU compiler on one megakernel, and how its report is read."""

import importlib.util
import json
import re
import shutil
from dataclasses import asdict, replace
from math import prod
from types import SimpleNamespace

import pytest

from lsd_jax import config as configs
from lsd_jax.cli import bench_cases
from lsd_jax.cli.main import main
from lsd_jax.config import Config, ModelConfig, StreamConfig
from lsd_jax.hw import chips
from lsd_jax.hw.plan import all_reduce_seconds
from lsd_jax.hw.stack import least_bytes, least_macs, stack_of, streamed_stack
from pallas_kernels import aot, aot_worker, bench
from pallas_kernels.tpu.plan import Shape
from pallas_kernels.tpu.planner import choose

SMALL = Shape(1, 64, 256, 2, 2, 128, 512, 64, 2, 3, 1, "bfloat16")
CASE = "pallas_kernels.tpu.cases:stack"
OPTIONS = {"implementation": "pallas", **asdict(SMALL)}
DYING = "tests.pallas_kernels.dying:case"

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is absent: it exists for x86-64 Linux alone",
)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """A user's warm cache would test nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a cache, and the one compilation in it that the tests below share."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        return folder, aot.compile_for("v6e", CASE, OPTIONS)


@needs_libtpu
def test_the_compiler_takes_the_megakernel_as_one_launch(small):
    _, found = small
    assert found.launches == 1 and list(found.operations)[0].startswith("denoise_stack")
    chip = chips.load("v6e")
    assert least_macs(SMALL) / chip["macs_bf16"] < found.cycles < 40_000
    assert found.argument_bytes + found.output_bytes > least_bytes(SMALL)


@needs_libtpu
def test_the_compiler_takes_weights_in_eight_bits(small):
    _, whole = small
    eight = aot.compile_for("v6e", CASE, OPTIONS | {"weight_dtype": "int8"})
    assert eight.launches == 1 and eight.cycles
    weights = SMALL.layers * SMALL.matrix_weights
    assert whole.argument_bytes - eight.argument_bytes > 0.9 * weights


@needs_libtpu
def test_the_compiler_takes_query_heads_that_share_keys(small):
    """As many queries; half of the keys, values and ages, and of what makes them."""
    _, whole = small
    shared = aot.compile_for("v6e", CASE, OPTIONS | {"heads": 1, "per_kv": 2})
    assert shared.launches == 1 and shared.cycles < whole.cycles
    saved = 2 * SMALL.layers * SMALL.head_dim * 2 * (SMALL.dim + SMALL.keys)
    assert whole.argument_bytes - shared.argument_bytes >= saved


@needs_libtpu
def test_the_compiler_takes_tokens_that_fill_no_tiles():
    """40 and 24 keys in tiles of 16: on each of two chips 64 rows, and slots that begin, and a
    buffer that ends, in the middle of a tile."""
    options = OPTIONS | {"tokens": 40, "ageless": 24, "slots": 3}
    assert aot.compile_for("v6e", CASE, options, profile=False, chips=2).kernels == 1


@needs_libtpu
def test_what_was_compiled_is_not_compiled_again(small, monkeypatch):
    folder, found = small
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(aot, "_compile", None)
    assert aot.compile_for("v6e", CASE, OPTIONS) == found


@needs_libtpu
def test_four_sessions_leave_xla_its_part_of_vmem():
    options = {"implementation": "pallas", **asdict(replace(SMALL, sessions=4, mlp=1024))}
    assert aot.compile_for("v6e", CASE, options).kernels == 1


@needs_libtpu
def test_a_kernel_too_large_for_the_chip_is_refused_in_a_line():
    options = {"implementation": "pallas", **asdict(SMALL), "sessions": 4096}
    with pytest.raises(ValueError, match="MB of VMEM, v6e has .* use fewer sessions"):
        aot.compile_for("v6e", CASE, options)


def test_bad_input_is_refused_in_a_line(monkeypatch):
    with pytest.raises(ValueError, match="compiles for v5e, .* not for 'v9'"):
        aot.compile_for("v9", CASE, {})

    def absent(name):
        raise aot.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(aot.importlib.metadata, "version", absent)
    with pytest.raises(ValueError, match=r"pip install -e '.\[tpu\]'"):
        aot.compile_for("v6e", CASE, {})


@needs_libtpu
@pytest.mark.parametrize(
    ("end", "reason"),
    [("SIGKILL", "SIGKILL, most likely for want of memory"), ("ImportError", "ImportError: gone")],
)
def test_a_worker_that_dies_is_no_profiler_that_stops(end, reason):
    with pytest.raises(ValueError, match=f"died: .*{reason}"):
        aot.compile_for("v6e", DYING, {"end": end})
    assert not list(aot._cache_folder().iterdir())


@needs_libtpu
def test_a_profiler_that_aborts_leaves_the_rest_and_its_reason():
    found = aot.compile_for("v6e", DYING, {"end": "SIGABRT"})
    assert found.cycles is None and found.kernels == 0 and found.argument_bytes > 0
    assert found.no_profile == "SIGABRT, profiler.cc:1] Check failed: known"
    assert "Check failed" in bench.no_profile(found)


def test_the_key_holds_code_and_chips_wherever_the_repository_lies(tmp_path):
    root = tmp_path / "train" / "lsd-jax"

    def key_with(name: str) -> str:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
        return aot._sources(root)

    keys = [key_with(f"lsd_jax/{n}") for n in ("stream.py", "hw/chips/v6e.json", "ops/train.py")]
    assert len(set(keys)) == 3
    assert key_with("lsd_jax/train/loop.py") == keys[-1]
    (root / "lsd_jax/stream.py").rename(root / "lsd_jax/streams.py")
    assert aot._sources(root) not in keys
    shutil.copytree(root, tmp_path / "elsewhere")
    assert aot._sources(root) == aot._sources(tmp_path / "elsewhere")


FRAME = Config(
    "frame-test",
    ModelConfig(
        height=128, width=128, dim=256, layers=3, heads=2, mlp=384, window=2, sinks=1,
        memory=2, prompt_tokens=8, reference_tokens=8, text_dim=32, text_layers=1, detail_dim=8,
    ),
    StreamConfig(compute_dtype="bfloat16"),
)  # fmt: skip


AS_JAX_DOES = {key: [False] * len(flags) for key, flags in bench.PLACED.items()}


@needs_libtpu
@pytest.mark.parametrize(
    ("free", "copied"),
    [(bench.PLACED, False), pytest.param(AS_JAX_DOES, True, marks=pytest.mark.slow)],
)
def test_a_compiled_frame_copies_neither_weights_nor_history(free, copied):
    """All that the kernels read lies as they read it, and history is written where it lies."""
    model, options = FRAME.model, {"implementation": "pallas", "config": asdict(FRAME)}
    case = "lsd_jax.cli.bench_cases:frame"
    found = aot.compile_for("v6e", case, options, free=free, profile=False)
    inner = model.heads * model.head_dim
    history = model.layers * model.keys * inner
    assert found.kernels == 6 and found.alias_bytes >= 2 * 2 * history
    large = bench.listed(found.described)
    megakernels = [line for line in large if "denoise_stack" in line]
    assert len(megakernels) == 2  # the pass, and what is remembered
    assert copied or len(large) - len(megakernels) <= 10
    weights = {model.layers * model.dim * n for n in (3 * inner, inner, model.mlp)}
    made = {text: re.findall(r"\w\[([\d,]+)\]", text) for text in found.described.values()}
    copies = [
        text
        for text, shapes in made.items()
        if not text.endswith("pallas_call")
        and any(prod(map(int, s.split(","))) in {history, *weights} for s in shapes)
    ]
    assert bool(copies) == copied, copies


def pixels(chip: str, op: str, config: Config, profile: bool) -> aot.Compiled:
    options = {"op": op, "implementation": "pallas", "config": asdict(config)}
    return aot.compile_for(chip, "lsd_jax.cli.bench_cases:pixels", options, profile=profile)


@needs_libtpu
@pytest.mark.parametrize(("chip", "profile"), [("v6e", True), ("v5e", False)])
def test_the_compiler_takes_a_readout_of_several_strips(chip, profile):
    """On a v6e also its profiler, which knows copies in one piece only."""
    low = replace(FRAME, model=replace(FRAME.model, height=48, memory=0))
    found = pixels(chip, "readout", low, profile)
    assert found.kernels == 1 and found.vmem_bytes and bool(found.cycles) == profile


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v6e", "v5e"])
@pytest.mark.parametrize("op", ["embed", "readout"])
def test_pictures_of_base_fit(chip, op):
    found = pixels(chip, op, configs.load("base"), profile=False)
    tall = replace(configs.load("base").model, height=1024)
    again = pixels(chip, op, replace(configs.load("base"), model=tall), profile=False)
    assert found.kernels == 1 and again.vmem_bytes == found.vmem_bytes < 64e6


HLO = """
%body.1 (p: s32[]) -> s32[] {
  %inner = f32[8] fusion(%p), backend_config={"bundle_analysis_data":{"estimated_cycles":"100"}}
}

%condition.1 (p: s32[]) -> pred[] {
  %c = s32[] constant(12)
}

ENTRY %main (p: s32[]) -> s32[] {
  %first = f32[8] fusion(%p), backend_config={"bundle_analysis_data":{"estimated_cycles":"40"}}
  %loop = (s32[]) while(%t), condition=%condition.1, body=%body.1
  ROOT %last = f32[8] copy(%p), backend_config={"bundle_analysis_data":{"estimated_cycles":"7"}}
}
"""


class Executable:
    """What JAX hands out, of a text."""

    def __init__(self, text: str):
        self.as_text = lambda: text

    def memory_analysis(self):
        names = ("argument_size", "output_size", "alias_size", "generated_code_size", "temp_size")
        return SimpleNamespace(**{f"{name}_in_bytes": 0 for name in names})


def test_loops_count_as_often_as_they_turn():
    assert aot_worker.profile(HLO) == {
        "first": (40, 1, "fusion f32[8]"),
        "inner": (100, 12, "fusion f32[8]"),
        "last": (7, 1, "copy f32[8]"),
    }
    found = aot_worker.figures(Executable(HLO))
    assert found["kernels"] == 0 and found["vmem_bytes"] is None
    assert found["cycles"] == 1247 and found["launches"] == 13  # the last is bookkeeping
    assert list(found["operations"].items()) == [("inner", 1200), ("first", 40)]
    bare = re.sub(r", backend_config=.*", "", HLO)
    found = aot_worker.profile(bare)
    assert {n: op[:2] for n, op in found.items()} == {
        "first": (None, 1), "inner": (None, 12), "last": (None, 1)
    }  # fmt: skip
    found = aot_worker.figures(Executable(bare))
    assert found["cycles"] is None and found["launches"] == 14 and len(found["operations"]) == 3
    with pytest.raises(ValueError, match="no single bound"):
        aot_worker.profile(HLO.replace("constant(12)", "parameter(0)"))


def test_a_program_tells_the_vmem_of_its_largest_kernel():
    used = '"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"%d"}]'
    kernel = '  %%k.%d = f32[8] custom-call(%%p), custom_call_target="tpu_custom_call", {%s}'
    lines = [kernel % (i, used % size) for i, size in enumerate((70, 90, 80))]
    fusion = f"  %f = f32[8] fusion(%p), {{{used % 1000}}}"
    text = "ENTRY %main (p: s32[]) -> s32[] {\n" + "\n".join([*lines, fusion]) + "\n}\n"
    found = aot_worker.figures(Executable(text))
    assert found["kernels"] == 3 and found["vmem_bytes"] == 90


def test_rows_of_a_frame_tell_operations_from_launches(monkeypatch):
    asked = []

    def compiled(chip, case, options, **_):
        assert case == "lsd_jax.cli.bench_cases:frame"
        asked.append(options["implementation"])
        described = {
            "a": "fusion (u32[1,2], u32[]) key",
            "b": "copy bf16[1,8,8,32] pass_0",
            "c": "",
        }
        return aot.Compiled(None, 14, 1, dict.fromkeys("abc"), described, 9, 9, 4, 1, "0", None)

    monkeypatch.setattr(aot, "libtpu_version", lambda: "0")
    monkeypatch.setattr(aot, "compile_for", compiled)
    rows = bench_cases.frame_rows(configs.load("tiny"), chips.load("v6e"))
    assert [row["impl"] for row in rows] == ["pallas", "xla-scan"] and asked == ["pallas", "xla"]
    assert all((row["operations"], row["launches"]) == (3, 14) for row in rows)
    assert all(row["small_operations"] == 2 for row in rows)  # on no more than a register
    assert rows[0]["note"].splitlines()[1:] == ["  b: copy bf16[1,8,8,32] pass_0"]
    assert "2 of them on no more than a register" in rows[0]["plan"]


@pytest.mark.parametrize("fails", ["pallas", "xla"])
def test_a_frame_that_one_compiler_fails_at_keeps_the_row_of_the_other(fails, monkeypatch):
    def compiled(chip, case, options, **_):
        if options["implementation"] in broken:
            raise ValueError("died: an internal check")
        return aot.Compiled(None, 14, 1, {"a": 1}, {"a": "copy"}, 9, 9, 4, 1, "0", None)

    monkeypatch.setattr(aot, "libtpu_version", lambda: "0")
    monkeypatch.setattr(aot, "compile_for", compiled)
    broken = {fails}
    rows = bench_cases.frame_rows(configs.load("tiny"), chips.load("v6e"))
    left, right = sorted(rows, key=lambda row: "launches" in row)
    assert left["impl"].startswith(fails) and left["note"] == "died: an internal check"
    assert right["launches"] == 14 and len(rows) == 2
    broken = {"pallas", "xla"}
    with pytest.raises(ValueError, match="died: an internal check; died"):
        bench_cases.frame_rows(configs.load("tiny"), chips.load("v6e"))


def test_rows_of_pixels_keep_what_is_refused(monkeypatch):
    profiled = []

    def compiled(chip, case, options, profile):
        assert case == "lsd_jax.cli.bench_cases:pixels"
        profiled.append(profile)
        if options["implementation"] == "pallas" and options["op"] == "readout":
            raise ValueError("pallas leaves readout of this config to xla")
        return aot.Compiled(1000, 3, 1, {}, {}, 10**6, 10**6, 0, 1, "0", vmem_bytes=9)

    monkeypatch.setattr(aot, "libtpu_version", lambda: "0")
    monkeypatch.setattr(aot, "compile_for", compiled)
    rows = bench_cases.pixel_rows(configs.load("tiny"), chips.load("v6e"))
    names = ["embed pallas", "embed xla", "readout pallas", "readout xla"]
    assert [row["impl"] for row in rows] == names
    assert rows[0]["cycles"] == 1000 and rows[0]["us"] > 0 and rows[1]["launches"] == 3
    assert rows[0]["vmem_peak_bytes"] == 9
    assert "leaves readout" in rows[2]["note"] and "cycles" not in rows[2]
    profiled.clear()
    bench_cases.pixel_rows(configs.load("base"), chips.load("v6e"))
    assert profiled == [True, False, True, False]  # XLA takes six times as many cycles
    monkeypatch.setattr(
        aot, "compile_for", lambda *_, **__: (_ for _ in ()).throw(ValueError("no"))
    )
    with pytest.raises(ValueError, match="no; no; no; no"):
        bench_cases.pixel_rows(configs.load("tiny"), chips.load("v6e"))


def test_of_many_layers_few_are_profiled(monkeypatch):
    """The profiler keeps all that it runs, and would run out of memory on twelve wide layers."""

    def compiled(chip, case, options, profile=True, chips=1):
        if chips > 1:
            raise ValueError("not asked for here")
        layers, planned = options["layers"], options.get("planned_layers")
        assert profile == (planned is not None) and planned in (None, 12)
        cycles = layers * 700_000 if profile else None
        return aot.Compiled(cycles, layers, 1, {}, {}, layers, layers, 0, layers, "0")

    monkeypatch.setattr(aot, "libtpu_version", lambda: "0")
    monkeypatch.setattr(aot, "compile_for", compiled)
    pallas, xla, *_ = bench.stack_rows(configs.load("base"), chips.load("v5e"))
    assert pallas["cycles"] == xla["cycles"] == 12 * 700_000
    assert pallas["code_bytes"] == 12 and xla["launches"] == 12 and xla["hbm_bytes"] == 24
    assert pallas["kinds"]["cycles"] == pallas["kinds"]["mxu_busy"] == "modelled"
    assert xla["kinds"]["launches"] == "modelled" and "launches" not in pallas["kinds"]
    assert "cycles of 1 of 12 layers" in pallas["note"]
    config, chip = configs.load("reference"), chips.load("v6e")
    shape = stack_of(config.model, config.stream.compute_dtype)
    assert bench.profiled_part(shape, chip, None) == (shape.layers, 1)
    refused = replace(shape, dim=500)
    assert bench.profiled_part(refused, chip, None) == (shape.layers, 1)


def test_of_a_layer_that_is_too_long_a_part_is_profiled(monkeypatch):
    """The megakernel's; XLA's has no parts, and then no cycles."""

    def compiled(chip, case, options, profile=True, chips=1):
        if chips > 1:
            raise ValueError("not asked for here")
        assert profile == ("part_of" in options)
        assert (options["heads"], options["mlp"]) == ((4, 4096) if profile else (8, 8192))
        cycles = options["layers"] * 600_000 if profile else None
        return aot.Compiled(cycles, options["layers"], 1, {}, {}, 9, 9, 0, 1, "0")

    monkeypatch.setattr(aot, "libtpu_version", lambda: "0")
    monkeypatch.setattr(aot, "compile_for", compiled)
    monkeypatch.setattr(bench, "PROFILED_CYCLES", {4096: 800_000})
    pallas, xla, *_ = bench.stack_rows(configs.load("lucy_v6e"), chips.load("v6e"))
    assert pallas["cycles"] == 24 * 2 * 600_000 and pallas["kinds"]["cycles"] == "modelled"
    assert pallas["launches"] == 24 and "one of 2 parts of 1 of 24 layers" in pallas["note"]
    monkeypatch.undo()
    shape, chip = streamed_stack(configs.load("lucy_v6e")), chips.load("v6e")
    alone = choose(shape, "v6e").plan
    assert bench.profiled_part(shape, chip, alone) == (1, 0)  # four parts are still too long
    each = choose(shape, "v6e", 8).plan
    assert bench.profiled_part(each.shape, chip, each) == (1, 1)
    assert "cycles" not in xla and "more than 7 GB" in xla["note"] and xla["launches"] == 24


def test_rows_without_cycles_are_kept(monkeypatch):
    monkeypatch.setattr(aot, "libtpu_version", lambda: "0")
    found = aot.Compiled(None, 14, 1, {}, {}, 9, 9, 4, 1, "0", "SIGABRT, failed")
    monkeypatch.setattr(aot, "compile_for", lambda *_, **__: found)
    for row in bench.stack_rows(configs.load("reference"), chips.load("v6e")):
        assert row["floor_us"] > 0 and row["launches"] == 14 and row["hbm_bytes"] > 0
        assert "cycles" not in row and "profiler stops" in row["note"]

    def refuses(*_, **__):
        raise ValueError("no room")

    monkeypatch.setattr(aot, "compile_for", refuses)
    with pytest.raises(ValueError, match="no room; no room; no room"):
        bench.stack_rows(configs.load("reference"), chips.load("v6e"))


def test_rows_of_several_chips_add_what_the_links_take(monkeypatch):
    """One chip's share is profiled by itself; all of them together are only compiled."""

    def compiled(chip, case, options, profile=True, chips=1):
        assert profile == (chips == 1) and options["heads"] == (4 if chips > 1 else 4 // asked)
        return aot.Compiled(40_000 if profile else None, chips, 1, {}, {}, 9, 9, 0, 1, "0")

    monkeypatch.setattr(aot, "compile_for", compiled)
    chip, shape = chips.load("v6e"), streamed_stack(configs.load("reference"))
    for asked in (2, 4):
        row = bench.shared_figures(shape, chip, asked)
        links_us = 1e6 * all_reduce_seconds(shape, chip, asked)
        added_us = float(re.search(r"([\d.]+) us to add up", row["note"])[1])
        assert row["launches"] == asked and row["cycles"] == 40_000
        alone_us = 40_000 / chip["clock"] * 1e6
        assert row["us"] == pytest.approx(alone_us + links_us + added_us, abs=0.05)
        assert 0 < added_us < links_us
        assert row["kinds"]["us"] == "modelled" and "share, compiled alone" in row["note"]


@needs_libtpu
@pytest.mark.parametrize(("chip", "chips"), [("v6e", 8), ("v5e", 4)])
def test_a_megakernel_of_several_chips_compiles(chip, chips):
    """Copies to other chips and their semaphores are legal code, and all fits."""
    options = {"implementation": "pallas", **asdict(replace(SMALL, heads=8, mlp=1024, tokens=128))}
    found = aot.compile_for(chip, CASE, options, profile=False, chips=chips)
    assert found.kernels == 1 and found.cycles is None
    weights = SMALL.layers * 2 * 256 * (4 * 8 * 128 + 2 * 1024)
    assert weights / chips < found.argument_bytes < 2 * weights / chips  # of one device


@needs_libtpu
def test_blocks_of_rows_that_are_no_whole_tiles_of_int8_compile():
    """144 rows for each of eight chips, where a tile of int8 has 32."""
    shape = replace(SMALL, layers=1, heads=8, mlp=1024, tokens=1152, slots=1, weight_dtype="int8")
    assert choose(shape, "v6e", 8).plan.rows % 32
    options = {"implementation": "pallas", **asdict(shape)}
    assert aot.compile_for("v6e", CASE, options, profile=False, chips=8).kernels == 1


def test_what_chips_cannot_share_is_refused():
    with pytest.raises(ValueError, match="up to 8 devices, not for 9"):
        aot.compile_for("v6e", CASE, OPTIONS, chips=9)


def test_the_command_prints_rows_and_writes_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(aot, "libtpu_version", lambda: "0")
    cycles = {"pallas": 50_000, "xla": 80_000}

    def compiled(chip, case, options, profile=True, chips=1):
        name = options["implementation"]
        if name not in cycles:
            raise ValueError("the profiler stopped")
        return aot.Compiled(cycles[name], 3, 1, {}, {}, 10**7, 10**6, 0, 10**6, "0")

    monkeypatch.setattr(aot, "compile_for", compiled)
    path = tmp_path / "rows.json"
    assert main(["bench", "stack", "--chip", "v6e", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "xla-scan: the profiler stopped" in printed
    assert "VMEM peak modelled" in " ".join(printed.split())
    pallas, xla, scan, *shared = json.loads(path.read_text())["rows"]
    assert [row["cores"] for row in shared] == [2, 4]  # heads, and so no eight
    assert pallas["kind"] == "compiled" and pallas["cycles"] == 50_000 and scan["cycles"] is None
    assert pallas["kinds"] == {"hbm_bytes": "modelled", "vmem_peak_bytes": "modelled"}
    assert not xla["kinds"] and xla["vmem_peak_bytes"] is None
    chip = chips.load("v6e")
    assert pallas["us"] == pytest.approx(50_000 / chip["clock"] * 1e6)
    assert pallas["floor_us"] == pytest.approx(pallas["hbm_bytes"] / chip["hbm_bandwidth"] * 1e6)
    assert xla["mxu_busy"] == pytest.approx(pallas["mxu_busy"] * 50 / 80)
    cycles["pallas"] = 30_000  # the plan's bytes take longer
    assert main(["bench", "stack", "--chip", "v6e", "--json", str(path)]) == 0
    row = json.loads(path.read_text())["rows"][0]
    assert row["kinds"]["us"] == "modelled" and row["us"] == pytest.approx(row["floor_us"])
    cycles["pallas"] = 10  # fewer than the multiply-adds take
    assert main(["bench", "stack", "--chip", "v6e", "--json", str(path)]) == 0
    assert "miscounted" in json.loads(path.read_text())["rows"][0]["note"]
    assert main(["bench", "stack", "--chip", "v9"]) == 2
