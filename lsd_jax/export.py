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
from nki_kernels import _compat, alone, backend, bench, limits, pack
from nki_kernels.plan import Shapes
from nki_kernels.sharing import DoesNotFit, share

TARGETS = {"trn1": ("trn1", 1), "trn2": ("trn2", 2), "trn3": ("trn3", 2)}  # neuronx-cc: target, lnc
COMPILE = (
    "neuronx-cc compile frame_step.hlo.pb --framework XLA --target {target} -lnc {lnc} "
    "--model-type transformer --auto-cast none --output frame_step.neff"
)
DEBUG = (
    "export NEURON_FRAMEWORK_DEBUG=1 XLA_IR_DEBUG=1 XLA_HLO_DEBUG=1 NKI_DEBUG_INFO=True "
    "NEURON_LOGICAL_NC_CONFIG={lnc}  # names of ours in the profile: set before compiling"
)
PROFILE = (
    "NEURON_RT_ENABLE_DGE_NOTIFICATIONS=1 neuron-profile capture --neff frame_step.neff "
    "-s frame_step.ntff\n"
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


def check(config: Config, chip: Chip, out: Path) -> Shapes:
    """What one core of the device computes. Raises ValueError for a chip that is no Trainium, a
    place that is taken, or a shape that the kernel refuses."""
    if chip.name not in TARGETS:
        raise ValueError(f"--chip {chip.name}: export is for {', '.join(TARGETS)}")
    if out.exists():
        raise ValueError(f"{out} exists; give another folder")
    lnc = TARGETS[chip.name][1]
    limit = int(chip["sbuf_bytes_per_partition"])
    try:
        return share(streamed_stack(config), cores=lnc, sbuf_bytes=limit)
    except DoesNotFit as refusal:
        device = f"one core of {chip.name}" if lnc == 1 else f"{lnc} cores of {chip.name} as one"
        tokens = refusal.most_tokens(refusal.ranks, lnc)
        remedy = (
            f"at most {tokens} tokens fit (it has {config.model.tokens}): set model.height and "
            "model.width, or model.patch" if tokens else "take a smaller model"
        )  # fmt: skip
        raise ValueError(
            f"{config.name}: an export is for one device, {device}, which it does not fit "
            f"({refusal.why}); {remedy}"
        ) from refusal
    except NotImplementedError as refusal:
        raise ValueError(str(refusal)) from refusal


def export(
    config: Config, chip: Chip, out: Path, denoiser: Denoiser, weights_from: str
) -> dict[str, Any]:
    """Writes the folder `out`, whole or not at all, and returns its manifest.

    With the real `nki` the HLO holds the kernel's custom call, for which no device is needed;
    without it, and where NKI cannot lower the kernel, the blocks are plain XLA, which neuronx-cc
    compiles too. The manifest says which, why, and where the weights are from. They are written as
    the kernel takes them: `packed_weights.npy`, the bits of the compute dtype as integers.

    Raises ValueError as `check` does, and for a frame step that Neuron's JAX does not take.
    """
    shapes = check(config, chip, out)
    target, lnc = TARGETS[chip.name]
    stack = streamed_stack(config)
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        module, kernel, why = frame_step(config, lnc)
        (beside / "frame_step.hlo.pb").write_bytes(module)
        weights = stream.prepare(denoiser, config).denoiser.stack.weights()
        packed = np.asarray(jax.jit(pack.pack_weights, static_argnums=1)(weights, shapes))
        np.save(beside / "packed_weights.npy", packed.view(f"u{packed.dtype.itemsize}"))
        shutil.copytree(
            Path(nki_kernels.__file__).parent, beside / "nki_kernels",
            ignore=shutil.ignore_patterns("__pycache__"),
        )  # fmt: skip
        commands = [DEBUG.format(lnc=lnc), COMPILE.format(target=target, lnc=lnc), PROFILE]
        write_commands(beside, commands)
        write_megakernel(beside / alone.MODULE, config, chip)
        manifest = {
            "module": alone.FRAME_STEP, "config": config.name, "chip": chip.name, "cores": lnc,
            "compute_dtype": stack.dtype,
            "weight_dtype": stack.weight_dtype or stack.dtype,
            "kernel": kernel, "kernel_why": why,
            "weights": "packed_weights.npy", "weights_from": weights_from,
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


def frame_step(config: Config, cores: int) -> tuple[bytes, str, str]:
    """The frame step of one session as a serialised HLO module, who computes its blocks, and why.

    Raises ValueError for what Neuron's JAX does not take around the kernel.
    """
    with jax.default_prng_impl("rbg"), dispatch.using("xla"):
        step, inputs = partial(stream.frame_step, one_by_one=False), stream.abstract_inputs(config)
        model = stream.abstract_prepared(config)
        if found := limits.violations(step, model, *inputs):
            raise ValueError(f"Neuron's JAX does not take the frame step: {'; '.join(found)}")
    if not _compat.REAL:
        return hlo(config, "xla"), "plain XLA", "the real `nki` is not installed here"
    try:
        with backend.ahead_of_time(cores):
            return hlo(config, "nki"), "custom call", "the real `nki` is installed"
    except Exception as error:  # of NKI or its plugin, which promise nothing without a device
        said = " ".join(str(error).split())[:200]
        why = f"NKI did not lower the kernel here: {type(error).__name__}: {said}"
        return hlo(config, "xla"), "plain XLA", why


def hlo(config: Config, implementation: str) -> bytes:
    """The frame step of one session, lowered for Neuron, which need not be here."""

    with jax.default_prng_impl("rbg"), dispatch.using(implementation):
        model = stream.abstract_adapted(config)
        step = jax.jit(partial(stream.frame_step, one_by_one=False), donate_argnums=1)
        traced = step.trace(model, *stream.abstract_inputs(config))
        lowered = traced.lower(lowering_platforms=("neuron",))
    return lowered.compiler_ir("hlo").as_serialized_hlo_module_proto()  # type: ignore[union-attr]
