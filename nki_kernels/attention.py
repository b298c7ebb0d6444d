"""The megakernel's attention: the frame's own keys from SBUF, then the buffer's in chunks.

A chunk is a few pieces of up to 128 keys. Its keys are transposed on TensorE, since the buffer
holds them with tokens in rows; the age of the slot is added on the way out of PSUM. Scores stand
with keys on partitions, so the bias of a key is ScalarE's bias operand, and exp(scores) is at once
the stationary matrix of the product with the values.
"""

from __future__ import annotations

from nki_kernels._compat import nisa, nl
from nki_kernels.plan import LANE
from nki_kernels.tiles import next_of, transpose_bank

AHEAD = 2  # score matmuls issued before the product that needs their exp


def gather_key_ages(s, c):
    """key_ages[:, part of a head, slot] = age_k[age of the slot, part], by one-hot ages."""
    bank, parts = next_of(c, "bank"), s["heads"] * s["parts"]
    for part in range(parts):
        nisa.nc_matmul(
            dst=bank[:, part * s["slots"] : (part + 1) * s["slots"]],
            stationary=c["age_k"][:, part * LANE : (part + 1) * LANE],
            moving=c["onehot"][:, :, 0], accumulate=False,
        )  # fmt: skip
    nisa.tensor_copy(
        dst=c["key_ages"],
        src=bank[:, 0 : parts * s["slots"]].reshape((LANE, parts, s["slots"])),
    )


def fetch_chunk(s, c, number):
    """Starts the transfers of a chunk of the buffer, if there is such a chunk."""
    if number < len(s["chunks"]):
        for i, pieces, start, count in s["loads"][number]:
            end = start + pieces * count
            for raw, buffer in ((c["raw_k"], c["k_buffer"]), (c["raw_v"], c["v_buffer"])):
                if pieces > 1:
                    rows = buffer[start:end].reshape((count, pieces, s["width"]))
                    nisa.dma_copy(dst=raw[0:count, i : i + pieces], src=rows)
                else:
                    nisa.dma_copy(dst=raw[0:count, i], src=buffer[start:end])


def attention(s, c, t):
    """Attends with token tile t to every key; leaves the result where its queries were."""
    heads, pieces, head = s["heads"], s["pieces"], s["head"]
    acc = nl.ndarray((LANE, s["asked"], 4, head + 1), dtype=nl.float32, name="acc")
    prepared = []
    for _ in range(min(2, len(s["chunks"]))):
        shape = (LANE, heads * s["parts"], pieces * LANE)
        k = nl.ndarray(shape, dtype=c["dtype"], name="chunk_k")
        v = nl.ndarray((LANE, pieces, heads, head + 1), dtype=c["dtype"], name="chunk_v")
        nisa.memset(dst=v[:, :, :, head : head + 1], value=1.0)
        prepared.append((k, v))
    c["ps"] = [nl.ndarray((LANE, s["columns"]), dtype=c["dtype"], name="p") for _ in range(4)]
    c["at_ps"] = 0
    if len(s["chunks"]) > 0:
        prepare_chunk(s, c, 0, prepared[0])
        fetch_chunk(s, c, 1)
    for i in range(len(s["own_chunks"])):
        work = [
            (c["keys"], at, c["values"], number, count, -1)
            for number, at, count in s["own_chunks"][i]
        ]
        attend_chunk(s, c, t, work, acc, i == 0)
    for i in range(len(s["chunks"])):
        if i + 1 < len(s["chunks"]):
            prepare_chunk(s, c, i + 1, prepared[(i + 1) % 2])
            fetch_chunk(s, c, i + 2)
        k, v = prepared[i % 2]
        chunk = s["chunks"][i]
        work = [(k, j * LANE, v, j, chunk[j][1], chunk[j][0]) for j in range(len(chunk))]
        attend_chunk(s, c, t, work, acc, False)
    divide(s, c, t, acc)


def prepare_chunk(s, c, number, prepared):
    """Keys of a chunk with features on partitions, values beside their ones; both with age."""
    k, v = prepared
    chunk, heads, head = s["chunks"][number], s["heads"], s["head"]
    per = c["half"] // LANE
    ages = {}
    for i in range(len(chunk)):
        _, count, slot = chunk[i]
        raw = c["raw_v"][0:count, i].reshape((count, heads, head))
        if slot >= 0:
            if str(slot) not in ages:
                ages[str(slot)] = value_age(s, c, slot)
            age = ages[str(slot)]
            nisa.tensor_tensor(
                dst=v[0:count, i, :, 0:head], data1=raw, op=nl.add,
                data2=age[0:count].reshape((count, heads, head)),
            )  # fmt: skip
        else:
            nisa.tensor_copy(dst=v[0:count, i, :, 0:head], src=raw)
    # Neighbouring pieces of one slot leave PSUM together, as they share an age.
    for group in groups(chunk, per):
        first, slot = group[0], chunk[group[0]][2]
        end = (len(group) - 1) * LANE + chunk[group[len(group) - 1]][1]
        for part in range(heads * s["parts"]):
            bank = transpose_bank(c)
            for i in group:
                count = chunk[i][1]
                nisa.nc_transpose(
                    dst=bank[:, (i - first) * LANE : (i - first) * LANE + count],
                    data=c["raw_k"][0:count, i, part * LANE : (part + 1) * LANE],
                )
            out = k[:, part, first * LANE : first * LANE + end]
            if slot >= 0:
                nisa.tensor_scalar(
                    dst=out, data=bank[:, 0:end], op0=nl.add,
                    operand0=c["key_ages"][:, part, slot : slot + 1],
                )  # fmt: skip
            else:
                nisa.tensor_copy(dst=out, src=bank[:, 0:end])


def groups(chunk, most):
    """Numbers of neighbouring pieces of one slot, at most so many together, full ones first."""
    found = []
    for i in range(len(chunk)):
        joins = len(found) > 0 and len(found[len(found) - 1]) < most
        if joins:
            last = chunk[found[len(found) - 1][0]]
            before = chunk[i - 1]
            joins = last[2] == chunk[i][2] and before[1] == LANE
        if joins:
            found[len(found) - 1].append(i)
        else:
            found.append([i])
    return found


def value_age(s, c, slot):
    """age_v[age of the slot] in every row, as a product with its one-hot age."""
    row = next_of(c, "value_age")
    for at in range(0, s["width"], 4 * LANE):
        end = min(at + 4 * LANE, s["width"])
        bank = next_of(c, "bank")[:, 0 : end - at]
        nisa.nc_matmul(
            dst=bank, stationary=c["onehot"][:, slot, :], moving=c["age_v"][:, at:end],
            accumulate=False,
        )  # fmt: skip
        nisa.tensor_copy(dst=row[:, at:end], src=bank, engine=nisa.engine.scalar)
    return row


def attend_chunk(s, c, t, work, acc, first):
    """acc += exp(keys.T @ queries / sqrt(K) + bias).T @ [values | 1], over a chunk's pieces.

    `work` holds, for each piece, (keys, their column, values, their row, count, bias column or -1
    for the frame's own keys, whose bias is the layer's shift alone).
    Scores run `AHEAD` pieces before the products, so that TensorE never waits for ScalarE.
    """
    steps = [(head, i) for head in range(s["asked"]) for i in range(len(work))]
    weights, results = [], []
    banks = -(-len(s["lanes"][t]) // lanes_of_a_bank(s))
    for n in range(len(steps) + AHEAD):
        if n < len(steps):
            weights.append(score(s, c, t, steps[n][0], work[steps[n][1]]))
        if n >= AHEAD:
            head, i = steps[n - AHEAD]
            if i == 0:
                results = [next_of(c, "result") for _ in range(banks)]
            weigh(s, c, t, head, work[i], weights[n - AHEAD], results, i == 0)
            if i == len(work) - 1:
                collect(s, c, t, head, results, acc, first)


def score(s, c, t, head, piece):
    """exp(keys.T @ queries / sqrt(K) + bias) of one piece and query head: [keys, tokens]."""
    columns = s["tiles"][t][1]
    keys, at, _, _, count, bias = piece
    bank = next_of(c, "score")[0:count, 0:columns]
    for part in range(s["parts"]):
        of_keys = head // s["per_kv"] * s["parts"] + part
        nisa.nc_matmul(
            dst=bank, stationary=keys[:, of_keys, at : at + count],
            moving=c["q"][:, head * s["parts"] + part, 0:columns], accumulate=part > 0,
        )  # fmt: skip
    p = next_of(c, "ps")[0:count, 0:columns]
    added = c["scales"][0:count, 2:3]
    if bias >= 0:
        added = c["shifted_bias"][0:count, bias : bias + 1]
    nisa.activation(dst=p, op=nl.exp, data=bank, scale=s["head"] ** -0.5, bias=added)
    return p


def weigh(s, c, t, head, piece, p, results, first):
    """results += p.T @ [values | 1]: 128 tokens by 129 columns, two to a bank, or by 257."""
    _, _, values, row, count, _ = piece
    lanes, per, size = s["lanes"][t], lanes_of_a_bank(s), s["head"] + 1
    for i in range(len(lanes)):
        at, n = lanes[i]
        column = i % per * size
        nisa.nc_matmul(
            dst=results[i // per][0:n, column : column + size], stationary=p[:, at : at + n],
            moving=values[0:count, row, head // s["per_kv"], :], accumulate=not first,
        )  # fmt: skip


def lanes_of_a_bank(s):
    """Runs of 128 tokens whose results stand in one bank."""
    return 2 // s["parts"]


def collect(s, c, t, head, results, acc, first):
    """Adds one head's results over a chunk to what earlier chunks gave."""
    lanes, per = s["lanes"][t], lanes_of_a_bank(s)
    for i in range(0, len(lanes), per):
        n = lanes[i][1]
        bank, following = results[i // per], i + 1 < len(lanes) and per > 1
        pair = 2 if following and lanes[i + 1][1] == n else 1
        add_result(s, acc, bank, head, i, pair, n, first)
        if pair == 1 and following:
            add_result(s, acc, bank, head, i + 1, 1, lanes[i + 1][1], first)


def add_result(s, acc, bank, head, lane, lanes, n, first):
    """One or two neighbouring lanes of `collect`, in one instruction."""
    size = s["head"] + 1
    column = lane % lanes_of_a_bank(s) * size
    result = bank[0:n, column : column + lanes * size].reshape((n, lanes, size))
    to = acc[0:n, head, lane : lane + lanes]
    if first:
        nisa.tensor_copy(dst=to, src=result)
    else:
        nisa.tensor_tensor(dst=to, data1=to, data2=result, op=nl.add)


def divide(s, c, t, acc):
    """Divides by the sums, and puts features on partitions again, in place of the queries or, to
    be multiplied in eight bits, beside them."""
    lanes = s["lanes"][t]
    sums = nl.ndarray((LANE, s["asked"], 4), dtype=nl.float32, name="sums")
    for i in range(len(lanes)):
        n = lanes[i][1]
        nisa.reciprocal(dst=sums[0:n, :, i], data=acc[0:n, :, i, s["head"]])
    for head in range(s["asked"]):
        for part in range(s["parts"]):
            divide_part(s, c, t, acc, sums, head, part)


def divide_part(s, c, t, acc, sums, head, part):
    """128 features of one head of `divide`; `sums` are reciprocal already."""
    lanes, per = s["lanes"][t], c["half"] // LANE
    for first in range(0, len(lanes), per):
        bank = transpose_bank(c)
        last = min(first + per, len(lanes))
        for i in range(first, last):
            at, n = lanes[i]
            rows = next_of(c, "square")[0:n]
            nisa.tensor_scalar(
                dst=rows, data=acc[0:n, head, i, part * LANE : (part + 1) * LANE],
                op0=nl.multiply, operand0=sums[0:n, head, i : i + 1],
            )  # fmt: skip
            to = (i - first) * LANE
            nisa.nc_transpose(dst=bank[:, to : to + n], data=rows)
        begin = lanes[first][0]
        end = lanes[last - 1][0] + lanes[last - 1][1]
        nisa.tensor_copy(
            dst=c["attended"][:, head * s["parts"] + part, begin:end], src=bank[:, 0 : end - begin],
            engine=nisa.engine.scalar,
        )  # fmt: skip
