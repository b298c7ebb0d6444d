"""The megakernel: runs a program of `schedule.py` on one TensorCore, or on both of a chip, in one
launch.

Dimensions: those of `lsd_jax.types` and `plan.py`. Weights and the KV buffer stay in HBM and come
tile by tile; activations leave VMEM only as shares, to another chip or core.

Memory budget: `Plan.buffers` and `Plan.arguments`.

Pseudocode: `schedule.program`, an instruction a method of `Machine`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lsd_jax.ops.eight_bits import eight_bits
from pallas_kernels.tpu import cores, exchange, schedule
from pallas_kernels.tpu.loops import Index, Rows, aligned, loop, moved
from pallas_kernels.tpu.plan import LANES, Plan, parts
from pallas_kernels.tpu.schedule import Loop, Program, Step
from pallas_kernels.tpu.softmax import Softmax, Turned, dot

EPSILON = 1e-6
SAFE_EXPONENT = 96.0  # of 2; sums of thousands of such terms stay far below float32's 2^127
MASKED = -1e30  # an exponent of 2
LOG2_E = math.log2(math.e)
PROJECTED = 256  # rows of a product, whose norms the vector unit finds under the next one


@dataclass(frozen=True)
class Machine:
    """A plan and the references of its buffers; each method emits one instruction."""

    plan: Plan
    at: SimpleNamespace  # references by the names of `Plan.buffers`, `Plan.arguments`, operands

    def run(self, program: Program, layer: Index = 0, tile: Index = 0) -> None:
        """Emits `program`; layers are a loop, the tiles of a layer straight-line code.

        The compiler overlaps the units of a core inside straight-line code alone. Its static
        profile, moreover, miscounts a loop of copies inside another.
        """
        for node in program:
            if isinstance(node, Step):
                self.run((node.instruction,), node.layer, node.tile)
            elif not isinstance(node, Loop):
                EMIT[type(node)](self, node, layer, tile)
            elif node.over == "tile":
                for i in range(node.times):
                    self.run(node.body, layer, i)
            else:

                def turn(i, node=node):
                    self.run(node.body, node.first + i, tile)

                loop(node.times, turn)

    @property
    def core(self) -> Index:
        """Which of the cores that share this chip's part this one is."""
        return cores.here() if self.plan.cores > 1 else 0

    # Traffic

    def copies(self, ring: str, layer: Index, tile: Index, slot: Index) -> list:
        """The copies that make up a tile, from HBM to its slot of the ring."""
        at = self.at
        if ring == "heads":
            heads = self.heads(tile)
            pairs = [
                (at.qkv_hbm.at[layer, :, heads], at.qkv.at[slot]),
                (at.out_hbm.at[layer, heads], at.out.at[slot]),
                (at.k_hbm.at[layer, :, heads], at.k.at[slot]),
                (at.v_hbm.at[layer, :, heads], at.v.at[slot]),
            ]
        else:
            features = self.features(tile)
            pairs = [
                (at.up_hbm.at[layer, :, features], at.up.at[slot]),
                (at.down_hbm.at[layer, features], at.down.at[slot]),
            ]
        arrived = getattr(at, f"{ring}_arrived")
        return [
            pltpu.make_async_copy(source, target, arrived.at[slot, i])
            for i, (source, target) in enumerate(pairs)
        ]

    def slot(self, ring: str, layer: Index, tile: Index) -> Index:
        """Where in its ring a tile lies."""
        tiles, ahead = self.plan.tiles(ring), self.plan.ahead
        return tile % ahead if tiles % ahead == 0 else (layer * tiles + tile) % ahead

    def fill(self, node: schedule.Fill, layer: Index, tile: Index) -> None:
        tiles, ahead = self.plan.tiles(node.ring), self.plan.ahead
        for i in range(min(ahead, self.plan.all_tiles(node.ring))):
            for copy in self.copies(node.ring, *divmod(i, tiles), i):
                copy.start()

    def wait(self, node: schedule.Await, layer: Index, tile: Index) -> None:
        for copy in self.copies(node.ring, layer, tile, self.slot(node.ring, layer, tile)):
            copy.wait()

    def refill(self, node: schedule.Refill, layer: Index, tile: Index) -> None:
        tiles = self.plan.tiles(node.ring)
        due = layer * tiles + tile + self.plan.ahead

        @pl.when(due < self.plan.all_tiles(node.ring))
        def _():
            slot = self.slot(node.ring, layer, tile)
            for copy in self.copies(node.ring, due // tiles, due % tiles, slot):
                copy.start()

    def outgoing(self, layer: Index, tile: Index) -> list:
        """The copies of a group's new keys and values to HBM."""
        at, mine = self.at, pl.ds(tile * self.plan.group, self.plan.group)
        heads, both = self.heads(tile), ((at.k_new, at.k_out), (at.v_new, at.v_out))
        return [
            pltpu.make_async_copy(new.at[mine, rows], out.at[layer, heads, session], at.left.at[i])
            for i, (new, out) in enumerate(both)
            for session, rows, _ in self.sessions()
        ]

    def emit(self, node: schedule.Emit, layer: Index, tile: Index) -> None:
        for copy in self.outgoing(layer, tile):
            copy.start()

    def drain(self, node: schedule.Drain, layer: Index, tile: Index) -> None:
        for copy in self.outgoing(layer, tile):
            copy.wait()

    # Arithmetic

    def load(self, node: schedule.Load, layer: Index, tile: Index) -> None:
        at, plan, half = self.at, self.plan, self.plan.shape.head_dim // 2
        for name in ("q_scale", "k_scale", "age_k", "age_v"):
            getattr(at, name)[...] = getattr(at, f"{name}_in")[...].astype(jnp.float32)
        for session, rows, beside in self.sessions():
            if plan.sharers > 1:
                source = at.x_in.at[session]
                moved(pltpu.make_async_copy(source, at.offered.at[rows], at.left.at[0]))
            come = at.x_in[session] if plan.sharers == 1 else at.offered[rows]
            at.x[rows] = come.astype(jnp.float32)
            if plan.filled:
                at.x[beside] = jnp.zeros((plan.filled, plan.shape.dim), jnp.float32)
        cos, sin = at.cos_in[...].astype(jnp.float32), at.sin_in[...].astype(jnp.float32)
        for _, rows, beside in self.sessions(at.cos.shape[0]):  # once for each session of a block
            at.cos[rows, :half], at.cos[rows, half:] = cos, cos
            at.sin[rows, :half], at.sin[rows, half:] = -sin, sin
            if plan.filled:
                at.cos[beside] = at.sin[beside] = jnp.zeros((plan.filled, 2 * half), jnp.float32)
        for session in range(self.plan.shape.sessions if self.plan.turned else 0):
            for first in range(0, self.plan.shape.keys, LANES):
                keys = pl.ds(first, LANES)
                row = at.bias_in[session, :, keys] * LOG2_E
                at.bias[session, keys] = jnp.broadcast_to(row, (LANES, LANES)).T

    def store(self, node: schedule.Store, layer: Index, tile: Index) -> None:
        at = self.at
        for session, rows, _ in self.sessions():
            x = at.x[rows].astype(at.x_out.dtype)
            if self.plan.sharers == 1:
                at.x_out[session] = x
                continue
            at.offered[rows] = x

            @pl.when(self.core == 0)
            def _(session=session, rows=rows):
                target = at.x_out.at[session]
                moved(pltpu.make_async_copy(at.offered.at[rows], target, at.left.at[0]))

    def modulate(self, node: schedule.Modulate, layer: Index, tile: Index) -> None:
        at, first = self.at, 0 if node.part == "attention" else 3

        def block(rows: Rows, session: Index) -> None:
            x = at.x[rows]
            rms = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)
            shift, scale = self.modulation(layer, session, first, first + 1)
            h = self.operand(x * rms * (1 + scale) + shift)
            at.h[self.block_of(rows)] = h.values
            if h.scale is not None:
                at.h_scale[rows] = h.scale

        self.for_rows(block)

    def project(self, node: schedule.Project, layer: Index, tile: Index) -> None:
        at, slot, k_dim = self.at, self.slot("heads", layer, tile), self.plan.shape.head_dim
        group, new = range(self.plan.group), tile * self.plan.group
        heads = self.heads(tile)
        scale = k_dim**-0.5 * LOG2_E  # of logits that are exponents of 2
        q_scale = at.q_scale[pl.ds(layer, 1)] * scale
        k_scale = at.k_scale[pl.ds(layer, 1)]

        targets = [(at.q, part * self.plan.group) for part in range(self.plan.shape.per_kv)]
        targets += [(at.k_new, new), (at.v_new, new)]
        columns = list(product(range(len(targets)), group))
        eight = bool(self.plan.shape.weight_dtype)

        def piece(rows: Rows, h: Operand) -> None:
            place = pl.ds(rows.start % at.cos.shape[0], rows.size)
            cos, sin = at.cos[place], at.sin[place]
            y = h.times(jnp.concatenate([at.qkv[slot, part, i] for part, i in columns], axis=1))
            for column, (part, i) in enumerate(columns):
                target, first = targets[part]
                head = y[:, column * k_dim : (column + 1) * k_dim]
                if h.scale is not None:
                    head = head * at.qkv_scale_in[layer, part, pl.ds(heads.start + i, 1)]
                if target is not at.v_new:
                    head = norm(head) * (q_scale if target is at.q else k_scale)
                    head = head * cos + pltpu.roll(head, k_dim // 2, 1) * sin
                target[first + i, rows] = head.astype(target.dtype)

        def block(rows: Rows, session: Index) -> None:
            pieces = parts(rows.size, PROJECTED, 32 // (1 if eight else self.plan.shape.itemsize))
            if pieces[0][1] < PROJECTED // 2:  # products of so few rows wait for weights
                pieces = [(0, rows.size)]
            for first, size in pieces:
                some = pl.ds(aligned(rows.start + first, size), size)
                piece(some, self.modulated(some, rows, first))

        self.for_rows(block)

    def attend(self, node: schedule.Attend, layer: Index, tile: Index) -> None:
        at, plan, s = self.at, self.plan, self.plan.shape
        softmax = Turned if plan.turned else Softmax
        limit = self.limit(layer)

        def head(turn: Index, i: Index) -> None:
            session = turn // (plan.session_rows // plan.queries)
            rows = pl.ds(aligned(turn * plan.queries, plan.queries), plan.queries)
            for part in range(s.per_kv):
                q = at.q[part * plan.group + i, rows]
                state, last = softmax.empty(plan.queries, s.head_dim), None
                for k, v, bias in self.attended(layer, tile, session, i):
                    weights = softmax.weights(q, k, -limit if bias is None else bias - limit)
                    if last:  # a piece late, so that the units have something to do meanwhile
                        state = state.over(*last)
                    last = weights, v
                state = state.over(*last) if last else state
                columns = pl.ds(aligned((i * s.per_kv + part) * s.head_dim, s.head_dim), s.head_dim)
                at.attended[rows, columns] = state.result(at.attended.dtype)

        def block(turn: Index) -> None:
            for i in range(plan.group):
                head(turn, i)

        turns = plan.all_rows // plan.queries
        if plan.turned:
            loop(turns * plan.group, lambda n: head(n // plan.group, n % plan.group))
        else:
            loop(turns, block)

    def attended(self, layer: Index, tile: Index, session: Index, i: int) -> Iterator[tuple]:
        """Keys, values and bias of the tile's head `i`, piece by piece, with the embedding of their
        age where they have one; the bias as the plan's softmax takes it, or None."""
        at, plan, s = self.at, self.plan, self.plan.shape
        ring_slot, head = self.slot("heads", layer, tile), tile * plan.group + i
        of_all = self.heads(tile).start + i
        for slot, first, size in plan.pieces:
            if slot == -2:
                own = pl.ds(aligned(session * plan.session_rows + first, size), size)
                k, v = at.k_new[head, own], at.v_new[head, own]
                bias = seen(jnp.zeros((1, 1)), size, 0, s.tokens) if plan.filled else None
            else:
                start = first if slot < 0 else s.ageless + slot * s.tokens + first
                begin, many = plan.window(start, size)
                keys = pl.ds(begin, many)
                k, v = (ring[ring_slot, session, i, keys] for ring in (at.k, at.v))
                row = at.bias_in[session, :, keys] * LOG2_E
                bias = (
                    at.bias[session, keys] if plan.turned else seen(row, many, start - begin, size)
                )
            if slot >= 0:
                age = jnp.clip(at.age[session, slot], 0, s.ages - 1)
                k, v = (
                    add_row(x, table[layer, age, pl.ds(of_all, 1)])
                    for x, table in ((k, at.age_k), (v, at.age_v))
                )
            yield k, v, bias

    def project_out(self, node: schedule.ProjectOut, layer: Index, tile: Index) -> None:
        at, slot = self.at, self.slot("heads", layer, tile)

        def block(rows: Rows, session: Index) -> None:
            weight = at.out[slot].reshape(-1, self.plan.shape.dim)
            (gate,) = self.modulation(layer, session, 2)
            attended = self.operand(at.attended[rows])
            share = attended.times(weight, self.columns("out", layer, gate))
            exchange.add(self, "attention", rows, share, tile)

        self.for_rows(block)

    def mlp(self, node: schedule.Mlp, layer: Index, tile: Index) -> None:
        at, slot = self.at, self.slot("mlp", layer, tile)

        def block(rows: Rows, session: Index) -> None:
            h = self.modulated(rows, rows)
            up = Operand(h.values).times(at.up[slot], self.scale("up", layer, self.features(tile)))
            hidden = self.operand(twice_gelu(up, h.scale))
            if h.scale is not None and hidden.scale is not None:
                hidden = replace(hidden, scale=hidden.scale * h.scale)
            (gate,) = self.modulation(layer, session, 5)
            share = hidden.times(at.down[slot], self.columns("down", layer, 0.5 * gate))
            exchange.add(self, "mlp", rows, share, tile)

        self.for_rows(block)

    # Parts of instructions

    def heads(self, tile: Index) -> Rows:
        """A tile's among the heads in HBM."""
        first = self.core * self.plan.shape.heads + tile * self.plan.group
        return pl.ds(first, self.plan.group)

    def features(self, tile: Index) -> Rows:
        """A tile's among the features of the MLP in HBM."""
        first = self.core * self.plan.shape.mlp + tile * self.plan.chunk
        return pl.ds(aligned(first, self.plan.chunk), self.plan.chunk)

    def sessions(self, among: int = 0) -> Iterator[tuple[int, Rows, Rows]]:
        """The sessions of all rows, or of so many: the number of each, the rows of its tokens, and
        those that fill them up."""
        tokens, rows = self.plan.shape.tokens, self.plan.session_rows
        for session, start in enumerate(range(0, among or self.plan.all_rows, rows)):
            yield session, pl.ds(start, tokens), pl.ds(start + tokens, self.plan.filled)

    def for_rows(self, block: Callable[[Rows, Index], None]) -> None:
        """`block(rows, session)` for each block of rows; `session` is whose modulation they
        have."""
        rows, s = self.plan.rows, self.plan.shape

        def turn(i: Index) -> None:
            start = aligned(i * rows, rows)
            session = 0 if s.modulations == 1 else start // self.plan.session_rows
            block(pl.ds(start, rows), session)

        loop(self.plan.blocks, turn)

    def operand(self, x: jax.Array) -> Operand:
        """What a product with weights takes for `x [R, C]`."""
        if not self.plan.shape.weight_dtype:
            return Operand(x.astype(self.plan.shape.dtype))
        values, scale = eight_bits(x.astype(jnp.float32))
        return Operand(values.astype(jnp.int32).astype(jnp.int8), scale)

    def modulated(self, rows: Rows, block: Rows, first: int = 0) -> Operand:
        """What `Modulate` left of these rows, the block's from its `first` on."""
        h = self.at.h[self.block_of(block), first : first + rows.size]
        return Operand(h, self.at.h_scale[rows] if self.plan.shape.weight_dtype else None)

    def block_of(self, rows: Rows) -> Index:
        """Which block of rows these are."""
        return rows.start // self.plan.rows

    def scale(
        self, name: str, layer: Index, columns: Rows | slice = slice(None)
    ) -> jax.Array | None:
        """The scales `[1, C]` of columns of int8 weights; None for other weights."""
        if not self.plan.shape.weight_dtype:
            return None
        return getattr(self.at, f"{name}_scale_in")[pl.ds(layer, 1), columns]

    def columns(self, name: str, layer: Index, gate: jax.Array) -> jax.Array:
        """What the columns of a product with these weights are multiplied by, `[1, D]`."""
        scale = self.scale(name, layer)
        return gate if scale is None else gate * scale

    def modulation(self, layer: Index, session: Index, *rows: int) -> list[jax.Array]:
        """Some rows `[1, D]` of shift, scale, gate, shift, scale, gate, in float32."""
        found = self.at.modulation_in[layer, session].astype(jnp.float32)
        return [found[row : row + 1] for row in rows]

    def limit(self, layer: Index) -> jax.Array:
        """What to take from all logits of a layer, `[1, 1]`, such that no power of 2 overflows.

        QK-norm bounds them: |q . k| <= |q| |k|, where |q| <= sqrt(K) max|q_scale| and likewise for
        k, beside an age embedding. So the bound stands in for the running maximum of a softmax,
        and saves its reductions and rescalings; it is 0 unless scales are large. A row all of
        whose logits lie 2^200 below the bound would underflow, to NaN: that takes a bound of about
        200, so max|q_scale| max|k_scale| > 10, where trained scales are 1 to 3.
        """
        at, k_dim = self.at, self.plan.shape.head_dim

        def largest(scale):
            return jnp.max(jnp.abs(scale[pl.ds(layer, 1)]), axis=-1, keepdims=True)

        ages = at.age_k[layer].reshape(-1, k_dim)
        longest = jnp.max(jnp.sum(ages * ages, axis=-1, keepdims=True), axis=0, keepdims=True)
        key = k_dim**0.5 * largest(at.k_scale) + jnp.sqrt(longest)
        bound = largest(at.q_scale) * key * LOG2_E
        return jnp.maximum(bound - SAFE_EXPONENT, 0.0)


EMIT = {
    schedule.Meet: exchange.meet,
    schedule.Fill: Machine.fill,
    schedule.Await: Machine.wait,
    schedule.Refill: Machine.refill,
    schedule.Emit: Machine.emit,
    schedule.Drain: Machine.drain,
    schedule.Load: Machine.load,
    schedule.Modulate: Machine.modulate,
    schedule.Project: Machine.project,
    schedule.Attend: Machine.attend,
    schedule.ProjectOut: Machine.project_out,
    schedule.Mlp: Machine.mlp,
    schedule.Combine: exchange.combine,
    schedule.Store: Machine.store,
}
"""What emits each instruction."""


@dataclass(frozen=True)
class Operand:
    """Rows `[R, C]` to multiply with weights: as they are, or int8 with a scale for each row."""

    values: jax.Array
    scale: jax.Array | None = None

    def times(self, weight: jax.Array, columns: jax.Array | None = None) -> jax.Array:
        """The product in float32, its columns multiplied by `columns [1, C]` if there are any."""
        product = dot(self.values, weight).astype(jnp.float32)
        if self.scale is not None:
            product = product * self.scale
        return product if columns is None else product * columns


def seen(bias: jax.Array, keys: int, first: int, size: int) -> jax.Array:
    """`bias [1, C]` or `[1, 1]` of so many keys, of which but `size` from the `first` on are to be
    seen."""
    if size == keys:
        return bias
    key = jax.lax.broadcasted_iota(jnp.int32, (1, keys), 1)
    return jnp.where((key >= first) & (key < first + size), bias, MASKED)


def add_row(x: jax.Array, row: jax.Array) -> jax.Array:
    """`x [C, K] + row [1, K]`; the row is float32, and rounded to `x` before it is added."""
    return x + jnp.broadcast_to(row, x.shape).astype(x.dtype)


def norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)


def gelu(x: jax.Array) -> jax.Array:
    """GELU's tanh form."""
    return 0.5 * twice_gelu(x)


def twice_gelu(x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
    """GELU's tanh form (Hendrycks & Gimpel 2016) of `scale * x`, times `2 / scale`: what is left
    out is cheaper by rows and columns than by elements. `scale [R, 1]` is 1 where there is none."""
    first, third = 0.7978845608, 0.0356774081
    if scale is not None:
        first, third = first * scale, third * (scale * scale * scale)
    return x + x * jnp.tanh(x * (first + third * (x * x)))
