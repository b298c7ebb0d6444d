"""The real TPU compiler on fused attention, and how the bytes that a program moves are counted."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from lsd_jax import config as configs
from lsd_jax.hw import chips
from pallas_kernels import aot, aot_worker, bench_attention
from pallas_kernels.tpu.plan import Shape
from tests.marks import slow
from tests.pallas_kernels.test_aot import empty_cache, needs_libtpu

__all__ = ["empty_cache"]  # a fixture

SMALL = Shape(1, 192, 256, 1, 1, 128, 512, 48, 2, 3, 1, "bfloat16", per_kv=2)


@needs_libtpu
@pytest.mark.parametrize(
    ("chip", "gradients"),
    [("v6e", True), ("v5e", False), slow("v6e", False), slow("v5e", True)],
)
def test_the_compiler_takes_it_with_queries_and_keys_that_fill_no_tile(chip, gradients):
    options = {"implementation": "pallas", "gradients": gradients, **asdict(SMALL)}
    found = aot.compile_for(chip, bench_attention.CASE, options, profile=False)
    assert found.kernels == 1 + gradients
    logits = 4 * 2 * SMALL.tokens * (SMALL.keys + SMALL.tokens)
    assert found.temp_bytes < logits / 2


@needs_libtpu
def test_a_kernel_whose_metadata_has_lines_is_counted():
    """As that of jax's splash attention has."""
    sizes = asdict(SMALL) | {"tokens": 128, "ageless": 128, "per_kv": 1}
    options = {"implementation": "splash", "gradients": False, **sizes}
    found = aot.compile_for("v6e", bench_attention.CASE, options)
    assert any(name.startswith("splash") for name in found.operations) and found.kernels == 1


@needs_libtpu
def test_training_on_eight_chips_shares_rows_and_heads():
    """Sixteen rows over four devices, two heads over two: four rows of one head."""
    script = Path(__file__).with_name("trained_on_tpus.py")
    root = {"PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, env=os.environ | root
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = json.loads(done.stdout.splitlines()[-1])
    assert len(kernels) >= 2 and set(kernels) == {"4x1x256x128xbf16"}


PROGRAM = """
%body (p: s32[]) -> s32[] {
  %p = (f32[2]{0:T(128)}, f32[64]{0:T(256)S(1)}) parameter(0)
  %inner = f32[64]{0:T(256)S(1)} fusion(%near, %far), kind=kLoop
}

%condition (p: s32[]) -> pred[] {
  %c = s32[] constant(3)
}

ENTRY %main (a: bf16[100,2]) -> f32[64] {
  %far = f32[64]{0:T(256)} parameter(0)
  %near = f32[64]{0:T(256)S(1)} constant({...})
  %flags = pred[16]{0:T(16)} parameter(1)
  %start = (bf16[8,4]{1,0:T(8,128)S(1)}, bf16[8,4]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%b)
  %done = bf16[8,4]{1,0:T(8,128)S(1)} copy-done(%start)
  %loop = (s32[]) while(%t), condition=%condition, body=%body
  %kernel = (bf16[100,2]{1,0}, f32[1]{0:S(1)}) custom-call(%far, %flags), metadata={a=
"of its own": 2}
}
"""


def test_bytes_of_hbm_are_those_of_arrays_that_lie_there():
    copied, looped, kernel = 8 * 4 * 2, 3 * 64 * 4, 2 * 100 * 2 + 64 * 4 + 16
    assert aot_worker.hbm_bytes(PROGRAM) == copied + looped + kernel
    assert list(aot_worker.profile(PROGRAM)) == ["inner", "kernel"]


def test_rows_of_many_heads_say_that_some_were_profiled(monkeypatch):
    asked = []

    def compiled(chip, case, options, profile=True):
        if case == "a:case":
            return aot.Compiled(100_000, 3, 0, {}, {}, 10, 10, 0, 1, "0")
        asked.append((options["heads"], profile))
        if options["implementation"] == "xla" and options["gradients"]:
            raise ValueError("no room")
        cycles = 30_000 if profile else None
        return aot.Compiled(cycles, 3, 2, {}, {}, 10, 10, 0, 1, "0", None, 7, 10**9, 8)

    monkeypatch.setattr(aot, "libtpu_version", lambda: "0")
    monkeypatch.setattr(aot, "compile_for", compiled)
    chip = chips.load("v6e")
    rows = bench_attention.attention_rows(configs.load("base"), chip, "a:case")
    names = [row["impl"] for row in rows]
    assert names[:3] == ["pallas", "splash", "xla"] and names[5] == "xla, gradients"
    assert asked[:2] == [(1, True), (4, False)] and rows[5]["note"] == "no room"
    first, trained = rows[0], rows[3]
    assert first["cycles"] == 120_000 and first["kinds"]["cycles"] == "modelled"
    assert "1 of 4 heads" in first["note"] and first["temp_bytes"] == 7
    assert first["us"] == pytest.approx(1e6 * 10**9 / chip["hbm_bandwidth"])  # bytes take longer
    assert trained["mxu_busy"] == pytest.approx(3 * first["mxu_busy"])
    assert names[6:] == ["xla, qkv", "xla, modulate and qkv"]
    floor = 1024 * 1280 * 3 * 1024 / chip["macs_bf16"]
    assert rows[6]["mxu_busy"] == pytest.approx(floor / 100_000)
    few = bench_attention.attention_rows(configs.load("reference"), chip, "a:case")[0]
    assert few["kinds"] == {} and few["note"] is None and few["cycles"] == 30_000
