"""One frame in, one frame out: the pure streaming step and its compiled form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from lsd_jax import diffusion, placement, ring
from lsd_jax.codec import PixelCodec
from lsd_jax.config import Config
from lsd_jax.hw.stack import abstract_arguments, streamed_stack
from lsd_jax.model import Denoiser, abstract_model
from lsd_jax.ops import dispatch
from lsd_jax.ops.denoise_stack import denoise_stack
from lsd_jax.ops.partition import AXIS
from lsd_jax.ops.remember import finite, pinned_alone
from lsd_jax.quantize import quantize_stack
from lsd_jax.types import Conditioning, Frame, KVBuffer, StreamState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StreamModel:
    """A denoiser made ready to stream: cast, with the modulation of each pass worked out once.

    Modulation depends on noise level, history level and step size, all fixed for a compiled stream,
    so `passes [K, L, 1, 6, D]` and `commit [L, 1, 6, D]` are constants of the stream.
    """

    denoiser: Denoiser
    passes: Float[Array, "passes l 1 6 d"]
    commit: Float[Array, "l 1 6 d"]


class Seen(NamedTuple):
    """What a session saw and showed, by which it remembers a frame: the input and the frame out as
    latents, and the control planes, all in the compute dtype."""

    source: Float[Array, "b height width c"]
    shown: Float[Array, "b height width c"]
    controls: Float[Array, "b height width n"]


def prepare(denoiser: Denoiser, config: Config) -> StreamModel:
    """Casts the weights to the compute dtype, those of the blocks to eight bits where the config
    says so, and tabulates modulation, once at load."""
    levels = diffusion.pass_levels(config.stream.passes)
    zero, step = jnp.zeros(1), jnp.full(1, diffusion.step_size(config.stream.passes))
    passes = [denoiser.modulation(jnp.full(1, t), zero, step) for t in levels]
    commit = denoiser.modulation(jnp.ones(1), jnp.full(1, config.stream.history_level), zero)
    model = StreamModel(denoiser, jnp.stack(passes), commit)
    dtype = config.stream.compute_dtype
    ready = jax.tree.map(lambda x: x.astype(dtype), model)
    if not config.stream.weight_dtype:
        return ready
    whole = denoiser.stack.weights()  # as they were before the cast
    blocks = quantize_stack(whole, dtype, config.stream.weight_dtype)
    return replace(ready, denoiser=ready.denoiser.with_blocks(blocks))


def init_state(config: Config, seeds: jax.Array) -> StreamState:
    """Cold streams, one per seed (`[B]`, integers); a session's pictures depend on its own seed
    only."""
    batch = seeds.shape[0]
    return StreamState(
        kv=ring.empty(config.model, batch, config.stream.compute_dtype),
        key=jax.vmap(jax.random.key_data)(jax.vmap(jax.random.key)(seeds)),
        frame=jnp.zeros(batch, jnp.int32),
    )


def frame_step(
    model: StreamModel,
    state: StreamState,
    frame: Frame,
    controls: UInt8[Array, "b height width n"],
    one_by_one: bool = False,
) -> tuple[StreamState, Frame]:
    """Transforms the next frame of every session.

    Pure and free of branches; its cost does not depend on how long a stream has run.

    Args:
        model: from `prepare`.
        state: from `init_state`, then from the previous call; meant to be donated.
        frame: the input, at the model's resolution.
        controls: the planes of `control_planes`; where the mask is below 128 the output is the
            input, exactly.
        one_by_one: computes session after session, see `each_session`.

    Returns:
        The next state and the frame out.
    """
    state, out, _ = checked_step(model, state, frame, controls, one_by_one)
    return state, out


def checked_step(
    model: StreamModel,
    state: StreamState,
    frame: Frame,
    controls: UInt8[Array, "b height width n"],
    one_by_one: bool = False,
) -> tuple[StreamState, Frame, Bool[Array, " b"]]:
    """`frame_step`, and for each session whether what it showed and remembers is finite."""
    out, seen, shown = show(model, state, frame, controls, one_by_one)
    state, kept = remember(model, state, seen, one_by_one)
    return state, out, shown & kept


def show(
    model: StreamModel,
    state: StreamState,
    frame: Frame,
    controls: UInt8[Array, "b height width n"],
    one_by_one: bool = False,
) -> tuple[Frame, Seen, Bool[Array, " b"]]:
    """The first part of `frame_step`, up to the picture: whoever waits for it need not wait for
    `remember` as well.

    Returns:
        The frame out, what is to be remembered of it, and for each session whether all that it
        predicted was finite. A picture cannot say so: what is not a number becomes black.
    """
    noise = _noise(state.key, frame.shape[1:], model.commit.dtype)
    compute = partial(_show, model)
    if one_by_one:
        compute = each_session(compute, (ring.SESSION, 0, 0, 0), (0, 0, 0))
    return compute(state.kv, noise, frame, controls)


def seen(
    model: StreamModel, frame: Frame, shown: Frame, controls: UInt8[Array, "b height width n"]
) -> Seen:
    """What `show` gives to remember, anew from the pictures in and out."""
    codec, dtype = PixelCodec(), model.commit.dtype
    source, latent = (codec.encode(x).astype(dtype) for x in (frame, shown))
    return Seen(source, latent, controls.astype(dtype) / 255)


def remember(
    model: StreamModel, state: StreamState, seen: Seen, one_by_one: bool = False
) -> tuple[StreamState, Bool[Array, " b"]]:
    """The second part of `frame_step`, behind the picture: the state that the next frame wants,
    and for each session whether what it remembers of this one is finite."""
    with jax.named_scope("remember"):
        if one_by_one:
            recall = each_session(partial(_recall, model), (ring.SESSION, 0), (1, 1))
            k, v = recall(pinned_alone(state.kv), seen)
            with jax.named_scope("commit"):
                kv = ring.commit(state.kv, k, v, model.denoiser.config)
            kept = finite(k, 1) & finite(v, 1)
        else:
            kv, kept = model.denoiser.commit(*seen, state.kv, model.commit)
    return StreamState(kv=kv, key=_next_key(state.key), frame=state.frame + 1), kept


def _recall(model: StreamModel, kv: KVBuffer, seen: Seen) -> tuple[Array, Array]:
    """The keys and values `[L, B, T, H, K]` by which to remember what was seen."""
    return model.denoiser.remember(*seen, kv, model.commit)


def _show(
    model: StreamModel, kv: KVBuffer, noise: Array, frame: Frame, controls: Array
) -> tuple[Frame, Seen, Bool[Array, " b"]]:
    denoiser, codec = model.denoiser, PixelCodec()
    dtype = model.commit.dtype
    source = codec.encode(frame).astype(dtype)
    planes = controls.astype(dtype) / 255

    def predict(i: int, noisy: Array) -> Array:
        with jax.named_scope(f"pass_{i}"):
            return denoiser.denoise(source, noisy, planes, kv, model.passes[i])

    latent = diffusion.sample(predict, noise, model.passes.shape[0])
    out = confine(codec.decode(latent), frame, controls, denoiser.config.controls)
    return out, Seen(source, codec.encode(out).astype(dtype), planes), finite(latent, 0)


def control_planes(
    names: tuple[str, ...], mask: UInt8[Array, "b height width"]
) -> UInt8[Array, "b height width n"]:
    """The planes that `names` ask for."""
    return jnp.broadcast_to(mask[..., None], (*mask.shape, len(names)))


def confine(out: Frame, frame: Frame, controls: Array, names: tuple[str, ...]) -> Frame:
    """The output inside the mask, the input outside of it."""
    return jnp.where(controls >= 128, out, frame) if "mask" in names else out


def condition(
    model: StreamModel,
    state: StreamState,
    condition: Conditioning,
    sessions: Bool[Array, " b"],
    one_by_one: bool = False,
) -> StreamState:
    """Gives the chosen sessions a new prompt and reference: rewrites their pinned slots only."""
    pin = model.denoiser.pin
    if one_by_one:
        pin = each_session(pin, (0,), (1, 1, 0))
    k, v, valid = pin(condition)
    return state.replace(kv=ring.pin(state.kv, k, v, valid, sessions))


def forget(state: StreamState, sessions: Bool[Array, " b"]) -> StreamState:
    """Makes the chosen sessions forget the frames that they have shown, but not their prompt.

    Frames remembered under another prompt pull the next ones towards it until the window has
    passed, unless the model was trained on such windows.
    """
    return state.replace(kv=ring.forget(state.kv, sessions))


def each_session(compute: Callable, in_axes: tuple, out_axes: tuple[int, ...]) -> Callable:
    """`compute` for one session after the other, in one executable.

    The last bits of a CPU's matrix product depend on how many rows it has; this way a session's
    bits do not depend on its company. The axes say where the session lies, as those of `vmap`
    do, but `compute` keeps that axis.
    """

    def run(*inputs):
        def session(i):
            def row(axis, x):
                return jax.tree.map(lambda y: jax.lax.dynamic_slice_in_dim(y, i, 1, axis), x)

            out = compute(*jax.tree.map(row, in_axes, inputs))
            return each(jnp.squeeze, out)

        def each(change, out):
            return tuple(
                jax.tree.map(partial(change, axis=axis), x)
                for axis, x in zip(out_axes, out, strict=True)
            )

        sessions = jax.tree.leaves(inputs[-1])[0].shape[in_axes[-1]]
        out = jax.lax.map(session, jnp.arange(sessions))
        return each(lambda x, axis: jnp.moveaxis(x, 0, axis), out)

    return run


def restart(state: StreamState, sessions: Bool[Array, " b"], seeds: jax.Array) -> StreamState:
    """Makes the chosen sessions cold streams again, with new seeds `[B]`."""
    keys = jax.vmap(jax.random.key_data)(jax.vmap(jax.random.key)(seeds))
    return StreamState(
        kv=ring.clear(state.kv, sessions),
        key=jnp.where(sessions[:, None], keys, state.key),
        frame=jnp.where(sessions, 0, state.frame),
    )


@dataclass(frozen=True)
class CompiledStream:
    """The executables of a running stream. All donate the state; the first two take the model
    before it. `model` lies in memory as they take it, and so does a state from `place` or from any
    of them. `backends` says by which implementation each op runs in `step`."""

    step: jax.stages.Compiled
    condition: jax.stages.Compiled
    forget: jax.stages.Compiled
    model: StreamModel
    backends: dict[str, str]

    def place(self, state: StreamState) -> StreamState:
        """A state from elsewhere, as the executables take it."""
        return placement.place(state, placement.formats(self.step)[1])

    def place_input(self, controls: jax.Array) -> jax.Array:
        """Control planes that stay the same, where the step reads them."""
        return jax.device_put(controls, self.step.input_shardings[0][3])


def adapt(model: StreamModel, config: Config, batch: int) -> StreamModel:
    """The model with the weights of its blocks as the backend takes them that is to compute them:
    what it would else bring into its order in every pass, it is given in that order once."""
    seam = abstract_arguments(streamed_stack(config, batch))
    backend = denoise_stack.choose(*seam)
    prepare = denoise_stack.preparing(backend)
    if prepare and backend == config.stream.backend:  # nobody has asked yet whether it refuses
        jax.eval_shape(denoise_stack.implementation(backend), *seam)
    return model if prepare is None else replace(model, denoiser=model.denoiser.prepared(prepare))


def compile_stream(
    model: StreamModel,
    config: Config,
    batch: int = 1,
    mesh: Mesh | None = None,
    step: Callable = frame_step,
) -> CompiledStream:
    """Compiles the frame step, or `checked_step`, and the change of condition for `batch` sessions,
    ahead of time.

    The results refuse any other shape, dtype or placement instead of compiling again. On a `mesh`,
    the devices along its axis `tensor` share each frame: heads and MLP features of the blocks, with
    the keys and values of these heads. Raises ValueError where `config.stream.backend` is unknown
    or cannot serve this config, or so many devices cannot share it.
    """
    if mesh is None:
        return _compile(model, config, batch, None, step)
    chips, heads, mlp = mesh.shape[AXIS], config.model.key_heads, config.model.mlp
    if heads % chips or mlp % chips:
        able = ", ".join(str(n) for n in range(1, heads + 1) if not (heads % n or mlp % n))
        raise ValueError(
            f"{chips} devices cannot share a model of {heads} heads of keys and {mlp} MLP "
            f"features; {able} can"
        )
    with jax.set_mesh(mesh):
        return _compile(model, config, batch, mesh, step)


def _compile(
    model: StreamModel, config: Config, batch: int, mesh: Mesh | None, step: Callable
) -> CompiledStream:
    state, frame, controls = abstract_inputs(config, batch)
    flags = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    one_by_one = batch > 1 and jax.default_backend() == "cpu"

    next_frame = partial(step, one_by_one=one_by_one)
    with dispatch.using(config.stream.backend) as backends:
        try:
            model = adapt(model, config, batch)
            # Of a mesh's model only the shapes: it lies somewhere else yet.
            shapes = model if mesh is None else jax.eval_shape(lambda x: x, model)
            compiled = placement.compile_step(next_frame, shapes, state, frame, controls, mesh=mesh)
        except NotImplementedError as refusal:
            raise ValueError(f"backend {config.stream.backend}: {refusal}") from refusal
    model_lies, state_lies = placement.everywhere(compiled, model, state, mesh)
    change = jax.jit(
        partial(condition, one_by_one=one_by_one),
        donate_argnums=1,
        in_shardings=(model_lies, state_lies, None, None),
        out_shardings=state_lies,
    ).lower(shapes, state, abstract_condition(config, batch), flags)
    blank = jax.jit(
        forget, donate_argnums=0, in_shardings=(state_lies, None), out_shardings=state_lies
    ).lower(state, flags)
    placed = placement.place(model, model_lies)
    return CompiledStream(compiled, change.compile(), blank.compile(), placed, backends)


def abstract_inputs(config: Config, batch: int = 1) -> tuple[StreamState, Any, Any]:
    """Shapes and dtypes of what `frame_step` takes beside the model: state, frame and controls."""
    frame = jax.ShapeDtypeStruct((batch, config.model.height, config.model.width, 3), jnp.uint8)
    controls = jax.ShapeDtypeStruct((*frame.shape[:3], len(config.model.controls)), jnp.uint8)
    state = jax.eval_shape(lambda: init_state(config, jnp.zeros(batch, jnp.int32)))
    return state, frame, controls


def abstract_prepared(config: Config) -> StreamModel:
    """Shapes and dtypes of what `prepare` gives."""
    return jax.eval_shape(lambda model: prepare(model, config), abstract_model(config.model))


def abstract_adapted(config: Config, batch: int = 1) -> StreamModel:
    """Shapes and dtypes of what `adapt` makes of that, by the backend in use."""
    return jax.eval_shape(partial(adapt, config=config, batch=batch), abstract_prepared(config))


def abstract_condition(config: Config, batch: int) -> Conditioning:
    """Shapes and dtypes of the `Conditioning` that a model of this config takes."""
    model = config.model
    text: tuple[int, ...] = (batch, model.prompt_bytes)
    if model.external_text_dim:
        text = (*text, model.external_text_dim)
    return jax.eval_shape(
        lambda: Conditioning(
            prompt=jnp.zeros(text, jnp.float32 if model.external_text_dim else jnp.uint8),
            reference=jnp.zeros((batch, model.height, model.width, 3), jnp.uint8),
            has_reference=jnp.zeros(batch, bool),
        )
    )


def _noise(key_data: Array, shape: tuple[int, ...], dtype) -> Array:
    def one_session(data):
        _, used = jax.random.split(jax.random.wrap_key_data(data))
        return jax.random.normal(used, shape, jnp.float32)

    return jax.vmap(one_session)(key_data).astype(dtype)


def _next_key(key_data: Array) -> Array:
    def one_session(data):
        carried, _ = jax.random.split(jax.random.wrap_key_data(data))
        return jax.random.key_data(carried)

    return jax.vmap(one_session)(key_data)
