"""What lives in SBUF and PSUM during the megakernel: tiles, rings of tiles, blocks of weights.

Kernel code keeps to what NKI's tracer understands: plain functions, loops over `range` or tuples,
dictionaries with string keys.
"""

from __future__ import annotations

from nki_kernels._compat import nisa, nl
from nki_kernels.plan import LANE, TOKENS

EPSILON = 1e-6  # of the RMS norms, as lsd_jax.layers has it


def tiles(s, dtype, weight_dtype):
    """All tiles that live as long as the kernel; `plan.Shapes.sbuf_needed` adds up their bytes."""
    tokens, heads, parts, across = s["tokens"], s["heads"], s["parts"], s["across"]
    c = {
        "dtype": dtype, "weight_dtype": weight_dtype, "taken": 0, "issued": 0,
        "x": nl.ndarray((LANE, across, tokens), dtype=nl.float32, name="x"),
        "keys": nl.ndarray((LANE, heads * parts, tokens), dtype=dtype, name="keys"),
        "values": nl.ndarray(
            (LANE, len(s["own"]), heads, s["head"] + 1), dtype=dtype, name="values"
        ),
        "cos": nl.ndarray((LANE, tokens), dtype=dtype, name="cos"),
        "sin": nl.ndarray((LANE, tokens), dtype=dtype, name="sin"),
        "rotation": nl.ndarray((LANE, LANE), dtype=dtype, name="rotation"),
        "ones": nl.ndarray((LANE, LANE), dtype=dtype, name="ones"),
        "modulation": nl.ndarray((LANE, 6, across), dtype=nl.float32, name="modulation"),
        "scales": nl.ndarray((LANE, s["scales"]), dtype=nl.float32, name="scales"),
    }  # fmt: skip
    if len(s["buffer"]) > 0:
        for name in ("bias", "shifted_bias"):
            c[name] = nl.ndarray((LANE, len(s["buffer"])), dtype=nl.float32, name=name)
        shape = (LANE, s["pieces"], s["width"])
        c["raw_k"] = nl.ndarray(shape, dtype=dtype, name="raw_k")
        c["raw_v"] = nl.ndarray(shape, dtype=dtype, name="raw_v")
    if s["slots"] > 0:
        ages, slots, width = s["ages"], s["slots"], s["width"]
        c["onehot"] = nl.ndarray((ages, slots, LANE), dtype=dtype, name="onehot")
        c["age_k"] = nl.ndarray((ages, width), dtype=dtype, name="age_k")
        c["age_v"] = nl.ndarray((ages, width), dtype=dtype, name="age_v")
        c["key_ages"] = nl.ndarray((LANE, heads * parts, slots), dtype=nl.float32, name="key_ages")
        make_ring(c, "value_age", s["pieces"] + 1, (LANE, width), dtype)
    make_ring(c, "block", s["blocks"], (LANE, s["block"]), weight_dtype)
    make_ring(c, "square", 4, (LANE, LANE), dtype)
    make_banks(c, dtype)
    return c


def make_temporaries(s, c):
    """Tiles for a norm or a projection; made anew, so that attention has their room."""
    shape = (LANE, s["columns"])
    make_ring(c, "narrow", 8 * s["parts"], shape, c["dtype"])
    make_ring(c, "wide", 4, shape, nl.float32)
    make_ring(c, "norm", 4, shape, nl.float32)  # outlive the turns of "wide"


def make_ring(c, name, size, shape, dtype):
    """Tiles to be used in turn, so that one is filled while others are still read."""
    c[name] = [nl.ndarray(shape, dtype=dtype, name=name) for _ in range(size)]
    c["at_" + name] = 0


def next_of(c, name):
    """The next tile of a ring."""
    tile = c[name][c["at_" + name] % len(c[name])]
    c["at_" + name] += 1
    return tile


def make_banks(c, dtype):
    """PSUM: seven banks of float32 and one for transposes, which keep their dtype."""
    banks = [
        nl.ndarray((LANE, TOKENS), dtype=nl.float32, buffer=nl.psum, name="bank") for _ in range(7)
    ]
    c["score"], c["result"], c["bank"] = banks[:3], banks[3:], banks
    c["at_score"], c["at_result"], c["at_bank"] = 0, 0, 0
    half = 2 * LANE if dtype == nl.float32 else 4 * LANE  # half a bank
    c["half"] = half
    c["transposed"] = nl.ndarray((LANE, 2, half), dtype=dtype, buffer=nl.psum, name="transposed")
    c["at_transposed"] = 0


def transpose_bank(c):
    """The half of the transposes' bank that was not used last."""
    c["at_transposed"] += 1
    return c["transposed"][:, c["at_transposed"] % 2]


def weight_order(s):
    """(layer, block, elements) of every block of weights, in the order of use."""
    order = []
    for _ in range(s["sessions"]):
        for layer in range(s["layers"]):
            last = s["ring"] > 0 and layer == s["layers"] - 1
            for kinds in (("k", "v"), ("q", "out", "up", "down"))[: 1 if last else 2]:
                for _ in s["tiles"]:
                    for kind in kinds:
                        for i in range(len(s["split"][kind])):
                            used = s["split"][kind][i][1] * s["depth"][kind] * LANE
                            order.append((layer, s["first"][kind] + i, used))
    return order


def next_block(s, c, kind, count):
    """The next block as [128, output tiles, depth, 128], that of values as [128, depth, their
    columns]; fetches later ones into the ring."""
    ring = len(c["block"])
    core = nl.program_id(0)
    ahead = min(c["taken"] + ring, len(c["order"]))
    for i in range(c["issued"], ahead):
        layer, block, used = c["order"][i]
        tile = c["block"][i % ring]
        nisa.dma_copy(dst=tile[:, 0:used], src=c["weights"][core, layer, block, :, 0:used])
    c["issued"] = ahead
    tile = c["block"][c["taken"] % ring]
    c["taken"] += 1
    depth = s["depth"][kind]
    used = tile[:, 0 : count * depth * LANE]
    if kind == "v":
        return used.reshape((LANE, depth, count * LANE))
    return used.reshape((LANE, count, depth, LANE))


def contract(s, dst, stationary, moving, depth):
    """`dst = stationary.T @ moving` over `depth` lanes, the second axis of both; eight-bit numbers
    two lanes at a time."""
    step = 2 if s["eight"] else 1
    for k in range(0, depth, step):
        if k + 1 < depth and step == 2:
            nisa.nc_matmul(
                dst=dst, stationary=stationary[:, k : k + 2], moving=moving[:, k : k + 2],
                accumulate=k > 0, perf_mode=nisa.matmul_perf_mode.double_row,
            )  # fmt: skip
        else:
            nisa.nc_matmul(
                dst=dst, stationary=stationary[:, k], moving=moving[:, k], accumulate=k > 0
            )


def inverse_rms(c, total, count, columns):
    """1 / sqrt(total / count + epsilon) of sums of squares in PSUM, on GpSimd: no table switch."""
    mean, out = next_of(c, "norm")[:, 0:columns], next_of(c, "norm")[:, 0:columns]
    nisa.tensor_scalar(
        dst=mean, data=total, op0=nl.multiply, operand0=1.0 / count, op1=nl.add, operand1=EPSILON
    )
    nisa.tensor_scalar(dst=out, data=mean, op0=nl.rsqrt, operand0=0.0, engine=nisa.engine.gpsimd)
    return out
