"""The path on a Neuron device: whole up to the kernel's call here, and to the picture on one."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_nki_stream import CONFIG, abstract, kernel_in_place

from lsd_jax import stream
from lsd_jax.data.video import VideoSource
from lsd_jax.ops import dispatch
from nki_kernels import _compat, backend, limits
from nki_kernels.plan import LANE

KERNEL = "the_kernel"
CLIP = Path(stream.__file__).parent / "assets" / "sample.mp4"


def stub(shapes):
    """In the kernel's place a call of that name, on as many cores as it is asked for."""

    def call(x, *rest):
        return kernel_in_place(shapes, x, *rest)

    call.__name__ = KERNEL
    return {cores: jax.jit(call) for cores in (1, 2)}


@pytest.fixture
def device(monkeypatch):
    """As if there were one, with the real `nki`; the kernels asked for, by their shapes."""
    asked = []
    monkeypatch.setattr(backend.jax, "default_backend", lambda: "neuron")
    monkeypatch.setattr(_compat, "REAL", True)
    monkeypatch.setattr(backend, "kernel_of", lambda s: asked.append(s) or stub(s))
    with dispatch.using("nki") as chosen, jax.default_prng_impl("rbg"):
        yield asked, chosen


def adapted():
    model, *inputs = abstract()
    return jax.eval_shape(lambda m: stream.adapt(m, CONFIG, 1), model), *inputs


def test_a_frame_is_one_call_a_pass_and_one_that_commits(device):
    asked, chosen = device
    step = jax.make_jaxpr(partial(stream.frame_step))(*adapted())
    calls = [e for e in limits.equations(step.jaxpr) if e.params.get("name") == KERNEL]
    passes = CONFIG.stream.passes
    assert chosen == {"denoise_stack": "nki", "remember": "nki", "embed": "xla", "readout": "xla"}
    assert len(calls) == passes + 1
    model, committed = CONFIG.model, calls[-1]
    ring = (model.layers, 1, model.keys, model.heads * LANE)
    assert [v.aval.shape for v in committed.outvars[1:]] == [ring, ring]
    assert not any(ring in [v.aval.shape for v in c.outvars] for c in calls[:-1])
    assert [bool(shapes.ring) for shapes in asked[-passes - 1 :]] == [False] * passes + [True]
    makers = {v: e for e in step.jaxpr.eqns for v in e.outvars}
    for given in committed.invars[-3:-1]:  # the state's own buffer, not a copy of it
        while given in makers:
            assert makers[given].primitive.name == "reshape"
            given = makers[given].invars[0]
        assert given in step.jaxpr.invars


def test_the_ring_is_donated(device):
    step = jax.jit(partial(stream.frame_step), donate_argnums=1)
    lowered = step.trace(*adapted()).lower(lowering_platforms=("neuron",))
    model, text = CONFIG.model, lowered.as_text()
    buffer = f"{model.layers}x1x{model.keys}x{model.heads}x{LANE}xf32"
    signature = text[text.index("@main(") : text.index("->", text.index("@main("))]
    rings = [a for a in signature.split("%arg") if f"tensor<{buffer}>" in a]
    assert len(rings) == 2 and all("tf.aliasing_output" in a for a in rings)


def no_device() -> str:
    """Why the test on a device cannot run here, or nothing."""
    if not _compat.REAL:
        return "the real `nki` is not installed"
    if importlib.util.find_spec("libneuronxla") is None:
        return "there is no `libneuronxla`, Neuron's plugin for JAX"
    return "" if list(Path("/dev").glob("neuron*")) else "there is no Neuron device"


IN_A_PROCESS = """
import sys, numpy as np
from test_on_device import picture
np.save(sys.argv[2], picture(sys.argv[1]))
"""


def picture(which: str) -> np.ndarray:
    """What two frames of noise become by a backend, from weights of a seed."""
    from lsd_jax.model import Denoiser

    model = jax.jit(lambda key: Denoiser(CONFIG.model, key))(jax.random.key(0))
    step = jax.jit(partial(stream.frame_step), donate_argnums=1)
    state = stream.init_state(CONFIG, jnp.zeros(1, jnp.int32))
    rng, shown = np.random.default_rng(0), []
    with dispatch.using(which):
        ready = stream.adapt(stream.prepare(model, CONFIG), CONFIG, 1)
        _, frame, controls = stream.abstract_inputs(CONFIG)
        for _ in range(2):
            image = jnp.asarray(rng.integers(0, 255, frame.shape, dtype=np.uint8))
            state, out = step(ready, state, image, jnp.full(controls.shape, 255, jnp.uint8))
            shown.append(np.asarray(out))
    return np.stack(shown)


@pytest.mark.neuron
@pytest.mark.skipif(bool(no_device()), reason=no_device())
def test_a_frame_on_a_device_is_that_of_xla(tmp_path):
    """In processes of their own, as the suite keeps to the CPU."""
    shown = {}
    for which in ("nki", "xla"):
        out = tmp_path / f"{which}.npy"
        paths = f"{Path(__file__).parent}{os.pathsep}{Path(stream.__file__).parents[1]}"
        env = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
        env |= {"PYTHONPATH": paths, "JAX_DEFAULT_PRNG_IMPL": "rbg"}
        command = [sys.executable, "-c", IN_A_PROCESS, which, str(out)]
        subprocess.run(command, env=env, check=True, timeout=1200)
        shown[which] = np.load(out).astype(int)
    assert np.abs(shown["nki"] - shown["xla"]).max() <= 1 and shown["xla"].std() > 1


@pytest.mark.slow
def test_the_command_line_streams_by_the_simulated_kernel(tmp_path):
    """Two frames of the bundled clip, with threads for a host callback, as XLA shows them."""
    import av

    with VideoSource(str(CLIP), 128, 128) as source:
        frames = [image for (image, _), _ in zip(source, range(2), strict=False)]
    folder = tmp_path / "in"
    folder.mkdir()
    for i, image in enumerate(frames):
        av.VideoFrame.from_ndarray(image, "rgb24").to_image().save(folder / f"{i}.png")
    shown = {}
    for which in ("nki-sim", "xla"):
        out, report = tmp_path / which, tmp_path / f"{which}.json"
        command = [
            sys.executable, "-c", "import sys; from lsd_jax.cli.main import main; sys.exit(main())",
            "stream", str(folder), "--prompt", "make it night", "--backend", which,
            "-o", str(out), "--json", str(report),
        ]  # fmt: skip
        ran = subprocess.run(
            command, env=os.environ | {"NPROC": "4"}, capture_output=True, text=True, timeout=240
        )
        assert ran.returncode == 0, ran.stderr
        assert json.loads(report.read_text())["ops"]["denoise_stack"] == which
        with VideoSource(str(out), 128, 128) as source:
            shown[which] = np.stack([image for image, _ in source]).astype(int)
    assert shown["xla"].shape[0] == 2
    assert np.abs(shown["nki-sim"] - shown["xla"]).max() <= 1 and shown["xla"].std() > 1
