"""Training batches rendered from their plans, each device of a mesh the clips that lie on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from lsd_jax import sharding
from lsd_jax.config import ModelConfig
from lsd_jax.data import edits, textures, worlds
from lsd_jax.data.batch import Batch
from lsd_jax.data.plan import Plan, sample_worlds
from lsd_jax.data.scene import OBJECTS
from lsd_jax.data.worlds import KINDS, SceneEdit, World
from lsd_jax.stream import control_planes
from lsd_jax.types import Conditioning

AT_ONCE = 1 << 22  # pixels, of whole clips, rendered side by side: each takes some hundred bytes


@dataclass(frozen=True)
class Most:
    """How many clips of each kind a device has at most, which is how many it works on."""

    scenes: int
    footage: int
    filmed: int
    rendered: int


def render(plan: Plan, model: ModelConfig, mesh: Mesh | None = None) -> Batch:
    """The batch of a plan, which every host has whole, split over a mesh if there is one."""
    parts = sharding.parts(mesh) if mesh else 1
    kinds = (plan.scenes, ~plan.scenes, plan.filmed, ~plan.filmed)
    most = Most(*(int(x.reshape(parts, -1).sum(axis=1).max()) for x in kinds))
    bank = _bank(mesh) if mesh else textures.bank()
    if mesh is not None:
        if plan.film is not None:
            plan = replace(plan, film=_in_parts(plan.film, plan.filmed, parts))
        plan = sharding.spread(plan, NamedSharding(mesh, sharding.BATCH))
    size = (model.height, model.width)
    return _render(plan, bank, size=size, controls=model.controls, most=most, mesh=mesh)


@lru_cache
def _bank(mesh: Mesh) -> jax.Array:
    return sharding.spread(textures.bank(), NamedSharding(mesh, PartitionSpec()))


def _in_parts(film: np.ndarray, filmed: Bool[np.ndarray, " b"], parts: int) -> np.ndarray:
    """The film of each part's own clips, as much for every one: what is missing is black."""
    counts = filmed.reshape(parts, -1).sum(axis=1)
    out = np.zeros((parts, counts.max(), *film.shape[1:]), film.dtype)
    ends = np.cumsum(counts)
    for part, (end, count) in enumerate(zip(ends, counts, strict=True)):
        out[part, :count] = film[end - count : end]
    return out.reshape(-1, *film.shape[1:])


@partial(jax.jit, static_argnames=("size", "controls", "most", "mesh"))
def _render(plan: Plan, bank, *, size, controls, most: Most, mesh: Mesh | None) -> Batch:
    part = partial(_render_part, size=size, controls=controls, most=most)
    if mesh is None:
        return part(plan, bank)
    places = (sharding.BATCH, PartitionSpec())
    each = jax.shard_map(
        part, mesh=mesh, in_specs=places, out_specs=sharding.BATCH, check_vma=False
    )
    return each(plan, bank)


def _render_part(plan: Any, bank, *, size, controls, most: Most) -> Batch:
    clips = plan.starts.shape[0]
    times = plan.starts[:, None] + plan.offsets
    scenes, others = _rows(plan.scenes, most.scenes), _rows(~plan.scenes, most.footage)
    drawn, filmed = _rows(~plan.filmed, most.rendered), _rows(plan.filmed, most.filmed)
    reference = jnp.zeros((clips, *size, 3))
    lender, lent = _of(scenes, (plan.lender, plan.lent))
    sampled = sample_worlds(jnp.concatenate([plan.worlds, lender]))
    every = jax.tree.map(lambda x: x[:clips], sampled), times, plan.scale
    shown = _of(drawn, every) if most.filmed else every
    if most.scenes:
        lending = jax.tree.map(lambda x: x[clips:], sampled)
        first = render_clips(lending, lent, 1, size, bank)[:, 0]
        reference = reference.at[scenes].set(first, mode="drop")
        edit = SceneEdit(**_of(scenes, plan.scene_edits), reference=first)
        before, *when = _of(scenes, every)
        after = jax.vmap(worlds.edit_world)(before, edit), *when
        shown = jax.tree.map(lambda *x: jnp.concatenate(x), shown, after)
    source = jnp.zeros((clips, times.shape[1], *size, 3))
    edited = jnp.zeros((0, *source.shape[1:]))
    if most.rendered:
        world, when, scale = shown
        pictures = render_at(world, when, size, bank, scale)  # [R, F, H, W, 3] in [0, 1]
        plain, edited = jnp.split(pictures, [most.rendered])
        source = source.at[drawn].set(plain, mode="drop") if most.filmed else plain
    target = source
    if plan.film is not None:
        film = plan.film.astype(jnp.float32) / 255
        source = source.at[filmed].set(film[:, 0], mode="drop")
        target = target.at[filmed].set(film[:, 1], mode="drop")
    if most.footage:
        target = _edit_footage(target, others, plan.footage, times)
    target = target.at[scenes].set(edited, mode="drop")
    masks = jax.vmap(partial(in_region, size=size))(plan.regions)
    uses_reference = jnp.array([kind.endswith("from_reference") for kind in KINDS])
    return Batch(
        source=to_bytes(source),
        target=to_bytes(jnp.where(masks[:, None, ..., None] > 0, target, source)),
        controls=jnp.repeat(control_planes(controls, masks)[:, None], times.shape[1], axis=1),
        condition=Conditioning(
            prompt=plan.prompt,
            reference=to_bytes(reference),
            has_reference=plan.scenes & uses_reference[plan.scene_edits["kind"]],
        ),
        carried=plan.carried,
        old=plan.old,
    )


def _rows(chosen: Array, count: int) -> Array:
    """Which clips, and behind them the one past the last, to which nothing can be written."""
    return jnp.nonzero(chosen, size=count, fill_value=chosen.shape[0])[0]


def _of(rows: Array, tree: Any) -> Any:
    return jax.tree.map(lambda x: x.at[rows].get(mode="clip"), tree)


def _edit_footage(pictures: Array, rows: Array, footage: Array, times: Array) -> Array:
    """The clips, some of them edited: one after another, so that only its own two edits are
    computed for each."""

    def edited(row: Array) -> Array:
        (first, second), clip, when = _of(row, (footage, pictures, times))
        return edits.compose(first, second, clip, when)

    return pictures.at[rows].set(jax.lax.map(edited, rows), mode="drop")


def in_region(region: Float[Array, " 5"], size: tuple[int, int]) -> UInt8[Array, "height width"]:
    """255 inside a region of `plan.draw_regions`, 0 outside of it."""
    y, x = ((jnp.arange(n, dtype=jnp.float32) + 0.5) / n for n in size)
    centre_y, centre_x, radius_y, radius_x, power = region
    tall = (jnp.abs(y - centre_y) / radius_y) ** power
    wide = (jnp.abs(x - centre_x) / radius_x) ** power
    return jnp.where(tall[:, None] + wide < 1, 255, 0).astype(jnp.uint8)


def render_clips(drawn: World, starts, frames: int, size: tuple[int, int], bank) -> jax.Array:
    """`frames` frames of each world from its start on, `[B, F, H, W, 3]` in [0, 1]."""
    times = starts[:, None] + jnp.arange(frames, dtype=jnp.int32)
    return render_at(drawn, times, size, bank, jnp.ones((*times.shape, OBJECTS)))


def render_at(
    drawn: World,
    times: Int[Array, "b f"],
    size: tuple[int, int],
    bank,
    scale: Float[Array, "b f objects"],
) -> jax.Array:
    """Each world at its times, its objects scaled, `[B, F, H, W, 3]` in [0, 1]."""

    def one(world, time, scale):
        return worlds.render(worlds.scaled(world, scale), time, *size, bank)

    def clip(shown):
        return jax.vmap(one, (None, 0, 0))(*shown)

    clips, frames = times.shape
    most = max(1, AT_ONCE // (frames * size[0] * size[1]))
    if clips <= most:
        return jax.vmap(clip)((drawn, times, scale))
    together = next(n for n in range(most, 0, -1) if clips % n == 0)
    return jax.lax.map(clip, (drawn, times, scale), batch_size=together)


def to_bytes(x: jax.Array) -> jax.Array:
    """[0, 1] to bytes."""
    return jnp.round(x * 255).astype(jnp.uint8)
