"""Runs the megakernel's program in plain float32 `jnp`, an instruction at a time.

The same buffers as in `kernel.py`, by the same names, and the same rings: a slot holds NaN from
when its copy starts until it is awaited. So one reads here what each instruction means, and a test
can stop after any of them and compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from lsd_jax.ops.eight_bits import eight_bits
from lsd_jax.ops.partition import AXIS
from lsd_jax.types import KVBuffer, Rope, StackWeights
from pallas_kernels.tpu.kernel import EPSILON
from pallas_kernels.tpu.plan import Plan
from pallas_kernels.tpu.schedule import (
    Attend,
    Await,
    Combine,
    Drain,
    Emit,
    Fill,
    Load,
    Meet,
    Mlp,
    Modulate,
    Part,
    Project,
    ProjectOut,
    Refill,
    Ring,
    Step,
    Store,
)  # fmt: skip

LOG_2 = math.log(2)


def interpret(
    plan: Plan,
    steps: Iterable[Step],
    x: jax.Array,
    weights: StackWeights,
    kv: KVBuffer,
    bias: jax.Array,
    modulation: jax.Array,
    rope: Rope,
) -> dict[str, jax.Array]:
    """All buffers, float32, after `steps`; beside those of `Plan.buffers`, the results `x_out`,
    `k_out`, `v_out`. What nobody has written is NaN."""
    run = Interpreter(plan, x, weights, kv, bias, modulation, rope)
    for step in steps:
        run.step(step)
    return run.buffers


class Interpreter:
    """Buffers by name, and what each instruction does to them."""

    def __init__(self, plan: Plan, x, weights: StackWeights, kv: KVBuffer, bias, modulation, rope):
        self.plan, self.x = plan, x
        self.w, self.kv, self.bias, self.modulation, self.rope = weights, kv, bias, modulation, rope
        self.under_way: dict[tuple[Ring, int], tuple[int, int]] = {}
        self.buffers = {name: jnp.full(b.shape, jnp.nan) for name, b in plan.buffers.items()}
        s = plan.shape
        new = jnp.full((s.layers, s.heads, s.sessions, s.tokens, s.head_dim), jnp.nan)
        self.buffers |= {"x_out": jnp.full_like(x, jnp.nan), "k_out": new, "v_out": new}

    def step(self, step: Step) -> None:
        """One instruction."""
        layer, tile, plan = step.layer, step.tile, self.plan
        match step.instruction:
            case Load():
                self.load()
            case Fill(ring):
                for i in range(min(plan.ahead, plan.all_tiles(ring))):
                    self.start(ring, *divmod(i, plan.tiles(ring)))
            case Refill(ring):
                if due := plan.due(ring, layer, tile):
                    self.start(ring, *due)
            case Await(ring):
                self.arrive(ring, layer, tile)
            case Modulate(part):
                x, (shift, scale, _) = self.buffers["x"], self.rows_of(part, layer)
                self.modulated(norm(x) * (1 + scale) + shift)
            case Project():
                self.project(layer, tile)
            case Emit():
                heads = self.heads(tile)
                for name in ("k", "v"):
                    new = self.buffers[f"{name}_new"][heads]
                    self.set(f"{name}_out", (layer, heads), self.tokens(new))
            case Attend():
                self.attend(layer, tile)
            case ProjectOut():
                out = self.buffers["out"][self.slot("heads", layer, tile)]
                attended = self.operand(self.buffers["attended"])
                share = self.product(*attended, out.reshape(-1, out.shape[-1]), "out", layer)
                self.add("attention", layer, tile, share)
            case Mlp():
                slot = self.slot("mlp", layer, tile)
                up, down = self.buffers["up"][slot], self.buffers["down"][slot]
                features = slice(tile * plan.chunk, (tile + 1) * plan.chunk)
                hidden = self.product(*self.h, up, "up", layer, features)
                hidden = self.operand(jax.nn.gelu(hidden, approximate=True))
                self.add("mlp", layer, tile, self.product(*hidden, down, "down", layer))
            case Combine():
                self.buffers["x"] += jax.lax.psum(self.buffers["share"], AXIS)
            case Meet():
                pass  # `psum` waits for all
            case Store():
                self.buffers["x_out"] = self.tokens(self.buffers["x"])
            case Drain():
                pass  # `Emit` has copied already

    # Traffic

    def slot(self, ring: Ring, layer: int, tile: int) -> int:
        return (layer * self.plan.tiles(ring) + tile) % self.plan.ahead

    def start(self, ring: Ring, layer: int, tile: int) -> None:
        slot = self.slot(ring, layer, tile)
        self.under_way[ring, slot] = (layer, tile)
        for name in ("qkv", "out", "k", "v") if ring == "heads" else ("up", "down"):
            self.set(name, slot, jnp.nan)

    def arrive(self, ring: Ring, layer: int, tile: int) -> None:
        slot = self.slot(ring, layer, tile)
        if self.under_way.pop((ring, slot), None) != (layer, tile):
            raise ValueError(f"{ring} tile {tile} of layer {layer} is awaited but not on its way")
        if ring == "heads":
            heads = self.heads(tile)
            self.set("qkv", slot, jnp.transpose(self.w.qkv[layer], (1, 2, 0, 3))[:, heads])
            self.set("out", slot, self.w.out[layer, heads])
            self.set("k", slot, jnp.swapaxes(self.kv.k[layer], 1, 2)[:, heads])
            self.set("v", slot, jnp.swapaxes(self.kv.v[layer], 1, 2)[:, heads])
        else:
            features = slice(tile * self.plan.chunk, (tile + 1) * self.plan.chunk)
            self.set("up", slot, self.w.up[layer][:, features])
            self.set("down", slot, self.w.down[layer][features])

    # Arithmetic

    def load(self) -> None:
        plan, tables = self.plan, self.buffers["cos"].shape[0] // self.plan.session_rows
        x = jnp.pad(self.x.astype(jnp.float32), ((0, 0), (0, plan.filled), (0, 0)))
        self.buffers["x"] = x.reshape(plan.all_rows, plan.shape.dim)
        for name in ("q_scale", "k_scale", "age_k", "age_v"):
            self.buffers[name] = getattr(self.w, name).astype(jnp.float32)
        tables_in = self.rope.cos, self.rope.sin
        cos, sin = (jnp.pad(table, ((0, plan.filled), (0, 0))) for table in tables_in)
        self.buffers["cos"] = jnp.tile(jnp.concatenate([cos, cos], 1), (tables, 1))
        self.buffers["sin"] = jnp.tile(jnp.concatenate([-sin, sin], 1), (tables, 1))
        if self.plan.turned:
            shape = self.plan.buffers["bias"].shape
            self.set("bias", ..., jnp.broadcast_to(self.bias[..., None] / LOG_2, shape))

    def project(self, layer: int, tile: int) -> None:
        s, rows, buffers = self.plan.shape, self.plan.all_rows, self.buffers
        weights = buffers["qkv"][self.slot("heads", layer, tile)]
        heads = self.heads(tile)
        scales = self.w.matrix_scales
        parts = jnp.einsum("rd,cgdk->cgrk", self.h[0], weights) * self.h[1]
        if scales is not None:
            parts = parts * scales.qkv[layer, :, heads, None]
        q, (k, v) = parts[:-2].reshape(buffers["q"].shape), parts[-2:]
        cos, sin = jnp.tile(buffers["cos"], (rows // buffers["cos"].shape[0], 1)), buffers["sin"]
        sin = jnp.tile(sin, (rows // sin.shape[0], 1))

        def place(y, scale):
            y = norm(y) * scale[layer]
            return y * cos + jnp.roll(y, s.head_dim // 2, axis=-1) * sin

        # Queries carry the softmax's scale, in powers of 2.
        buffers["q"] = place(q, buffers["q_scale"]) * (s.head_dim**-0.5 / LOG_2)
        self.set("k_new", heads, place(k, buffers["k_scale"]))
        self.set("v_new", heads, v)

    def attend(self, layer: int, tile: int) -> None:
        s, buffers, heads = self.plan.shape, self.buffers, self.heads(tile)
        slot, rows = self.slot("heads", layer, tile), self.plan.session_rows
        group = []
        for b in range(s.sessions):
            own = slice(b * rows, b * rows + s.tokens)
            ages = jnp.clip(self.kv.age[b], 0, s.ages - 1)
            keys, values = (
                jnp.concatenate(
                    [remembered + age_per_key(table[layer][ages][:, heads], s), new[heads, own]], 1
                )
                for remembered, table, new in (
                    (buffers["k"][slot, b], buffers["age_k"], buffers["k_new"]),
                    (buffers["v"][slot, b], buffers["age_v"], buffers["v_new"]),
                )
            )
            q = buffers["q"].reshape(s.per_kv, self.plan.group, s.sessions, rows, -1)[:, :, b]
            logits = jnp.einsum("cgtk,gnk->cgtn", q, keys) * LOG_2
            logits += jnp.pad(self.bias[b], (0, s.tokens))
            group.append(jnp.einsum("cgtn,gnk->tgck", jax.nn.softmax(logits), values))
        buffers["attended"] = jnp.concatenate(group).reshape(self.plan.all_rows, -1)

    def operand(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What a product with weights takes for `x`, and what the result is multiplied by."""
        return eight_bits(x) if self.w.matrix_scales is not None else (x, jnp.ones((1, 1)))

    def modulated(self, h: jax.Array) -> None:
        self.h = self.operand(h)
        self.buffers["h"] = self.h[0].reshape(self.plan.buffers["h"].shape)
        if self.w.matrix_scales is not None:
            self.buffers["h_scale"] = self.h[1]

    def product(self, x, scale, weight, name: str, layer: int, columns=slice(None)) -> jax.Array:
        scales = self.w.matrix_scales
        by_column = 1.0 if scales is None else getattr(scales, name)[layer, columns]
        return x @ weight * scale * by_column

    def add(self, part: Part, layer: int, tile: int, share: jax.Array) -> None:
        share = self.rows_of(part, layer)[2] * share
        if self.plan.sharers == 1:
            self.buffers["x"] += share
        else:  # the first tile of a layer begins anew
            self.buffers["share"] = share + self.buffers["share"] if tile else share

    def rows_of(self, part: Part, layer: int) -> list[jax.Array]:
        """Shift, scale and gate of each row of the residual stream, `[R, D]`."""
        s, first = self.plan.shape, 0 if part == "attention" else 3
        each = jnp.broadcast_to(self.modulation[layer], (s.sessions, 6, s.dim))
        return [jnp.repeat(each[:, first + i], self.plan.session_rows, axis=0) for i in range(3)]

    def tokens(self, rows: jax.Array) -> jax.Array:
        """`[..., R, C]` as `[..., B, T, C]`, without what fills up."""
        s, (*major, _, columns) = self.plan.shape, rows.shape
        by_session = rows.reshape(*major, s.sessions, self.plan.session_rows, columns)
        return by_session[..., : s.tokens, :]

    def heads(self, tile: int) -> slice:
        return slice(tile * self.plan.group, (tile + 1) * self.plan.group)

    def set(self, name: str, index, value) -> None:
        self.buffers[name] = self.buffers[name].at[index].set(jnp.asarray(value, jnp.float32))


def norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)


def age_per_key(ages: jax.Array, s) -> jax.Array:
    """`[S, G, K]`, per slot, to `[G, N, K]`, per key; those in front have none."""
    frames = jnp.repeat(jnp.swapaxes(ages, 0, 1), s.tokens, axis=1)
    return jnp.pad(frames, ((0, 0), (s.ageless, 0), (0, 0)))
