"""A frame step packed for a Neuron machine: HLO, weights, kernel sources, and what to run there.
Beside it one pass of the megakernel alone, to whose profile the timeline can be fitted."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import nki_kernels
from lsd_jax import stream
from lsd_jax.config import Config
from lsd_jax.hw.chips import Chip
from lsd_jax.hw.stack import streamed_stack
from lsd_jax.model import Denoiser
from lsd_jax.ops import dispatch
from nki_kernels import _compat, alone, bench, limits, pack
from nki_kernels.sharing import share

TARGETS = {"trn1": ("trn1", 1), "trn2": ("trn2", 2), "trn3": ("trn3", 2)}  # neuronx-cc: target, lnc
COMPILE = (
    "neuronx-cc compile frame_step.hlo.pb --framework XLA --target {target} -lnc {lnc} "
    "--model-type transformer --auto-cast none --output frame_step.neff"
)
PROFILE = (
    "neuron-profile capture --neff frame_step.neff -s frame_step.ntff\n"
    "neuron-profile view -n frame_step.neff -s frame_step.ntff "
    "--output-format summary-json > summary.json"
)
ALONE = """\
export NEURON_PLATFORM_TARGET_OVERRIDE={target} NEURON_LOGICAL_NC_CONFIG={lnc} NKI_DEBUG_INFO=True
NEURON_RT_INSPECT_ENABLE=1 NEURON_RT_INSPECT_DEVICE_PROFILE=1 NEURON_RT_INSPECT_OUTPUT_DIR=ran \\
    PYTHONPATH=.. python -m nki_kernels.alone .
neff=$(find ran -name '*.neff' | head -n 1)  # there is one: no framework stands between
neuron-profile capture --neff "$neff" -s kernel.ntff --profile-nth-exec=2
neuron-profile view -n "$neff" -s kernel_exec_2.ntff --output-format summary-json > summary.json"""


def export(
    config: Config, chip: Chip, out: Path, denoiser: Denoiser | None = None
) -> dict[str, Any]:
    """Writes the folder `out`, whole or not at all, and returns its manifest.

    Without the real `nki` the HLO holds the blocks in plain XLA, which neuronx-cc compiles too;
    with it, the kernel's custom call. Weights are written where a `denoiser` is given, as the
    kernel takes them: `packed_weights.npy`, the bits of the compute dtype as integers.

    Raises ValueError for a chip that is no Trainium, a place that is taken, or a frame step that
    Neuron's JAX does not take; NotImplementedError for a shape that the kernel refuses.
    """
    if chip.name not in TARGETS:
        raise ValueError(f"--chip {chip.name}: export is for {', '.join(TARGETS)}")
    if out.exists():
        raise ValueError(f"{out} exists; give another folder")
    target, lnc = TARGETS[chip.name]
    stack = streamed_stack(config)
    shapes = share(stack, cores=lnc, sbuf_bytes=int(chip["sbuf_bytes_per_partition"]))
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        (beside / "frame_step.hlo.pb").write_bytes(hlo(config))
        if denoiser is not None:
            weights = stream.prepare(denoiser, config).denoiser.stack.weights()
            packed = np.asarray(jax.jit(pack.pack_weights, static_argnums=1)(weights, shapes))
            np.save(beside / "packed_weights.npy", packed.view(f"u{packed.dtype.itemsize}"))
        shutil.copytree(
            Path(nki_kernels.__file__).parent, beside / "nki_kernels",
            ignore=shutil.ignore_patterns("__pycache__"),
        )  # fmt: skip
        commands = [COMPILE.format(target=target, lnc=lnc), PROFILE]
        write_commands(beside, commands)
        write_megakernel(beside / alone.MODULE, config, chip)
        manifest = {
            "module": alone.FRAME_STEP, "config": config.name, "chip": chip.name, "cores": lnc,
            "compute_dtype": stack.dtype,
            "weight_dtype": stack.weight_dtype or stack.dtype,
            "kernel": "custom call" if _compat.REAL else "plain XLA",
            "weights": None if denoiser is None else "packed_weights.npy",
            "shapes": asdict(shapes), "commands": commands,
            "note": "nothing here has run on hardware yet",
        }  # fmt: skip
        (beside / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        os.replace(beside, out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return manifest


def write_megakernel(out: Path, config: Config, chip: Chip) -> None:
    """The folder from which one pass of the megakernel is profiled, in bfloat16 on one device: what
    it is, and the commands. `nki_kernels.alone` makes the arrays, on the spot."""
    target, lnc = TARGETS[chip.name]
    shapes = bench.shapes_of(config.model, chip, lnc, lnc, config.stream.weight_dtype)
    commands = [ALONE.format(target=target, lnc=lnc)]
    out.mkdir()
    write_commands(out, commands)
    manifest = {
        "module": alone.MODULE, "config": config.name, "chip": chip.name, "cores": lnc,
        "shapes": asdict(shapes), "commands": commands,
        "note": "nothing here has run on hardware yet",
    }  # fmt: skip
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def write_commands(folder: Path, commands: list[str]) -> None:
    """`commands.sh`, to be run in its folder."""
    (folder / "commands.sh").write_text("#!/bin/sh -e\n" + "\n".join(commands) + "\n")


def hlo(config: Config) -> bytes:
    """The frame step of one session as a serialised HLO module."""

    def ready(key):
        return stream.adapt(stream.prepare(Denoiser(config.model, key), config), config, 1)

    with jax.default_prng_impl("rbg"):
        inputs = stream.abstract_inputs(config)
        step = partial(stream.frame_step, one_by_one=False)
        with dispatch.using("nki" if _compat.REAL else "xla"):
            model = jax.eval_shape(ready, jax.random.key(0))
            if found := limits.violations(step, model, *inputs):
                raise ValueError(f"Neuron's JAX does not take the frame step: {'; '.join(found)}")
            lowered = jax.jit(step, donate_argnums=1).lower(model, *inputs)
    return lowered.compiler_ir("hlo").as_serialized_hlo_module_proto()  # type: ignore[union-attr]
