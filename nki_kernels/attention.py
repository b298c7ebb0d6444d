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
    """key_ages[:, head, slot] = age_k[age of the slot, head]: a product with one-hot ages."""
    bank = next_of(c, "bank")
    for head in range(s["heads"]):
        nisa.nc_matmul(
            dst=bank[:, head * s["slots"] : (head + 1) * s["slots"]],
            stationary=c["age_k"][:, head * LANE : (head + 1) * LANE],
            moving=c["onehot"][:, :, 0], accumulate=False,
        )  # fmt: skip
    nisa.tensor_copy(
        dst=c["key_ages"],
        src=bank[:, 0 : s["heads"] * s["slots"]].reshape((LANE, s["heads"], s["slots"])),
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
    heads, pieces = s["heads"], s["pieces"]
    acc = nl.ndarray((LANE, s["asked"], 4, LANE + 1), dtype=nl.float32, name="acc")
    prepared = []
    for _ in range(min(2, len(s["chunks"]))):
        k = nl.ndarray((LANE, heads, pieces * LANE), dtype=c["dtype"], name="chunk_k")
        v = nl.ndarray((LANE, pieces, heads, LANE + 1), dtype=c["dtype"], name="chunk_v")
        nisa.memset(dst=v[:, :, :, LANE : LANE + 1], value=1.0)
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
    chunk, heads = s["chunks"][number], s["heads"]
    per = c["half"] // LANE
    ages = {}
    for i in range(len(chunk)):
        _, count, slot = chunk[i]
        raw = c["raw_v"][0:count, i].reshape((count, heads, LANE))
        if slot >= 0:
            if str(slot) not in ages:
                ages[str(slot)] = value_age(s, c, slot)
            age = ages[str(slot)]
            nisa.tensor_tensor(
                dst=v[0:count, i, :, 0:LANE], data1=raw, op=nl.add,
                data2=age[0:count].reshape((count, heads, LANE)),
            )  # fmt: skip
        else:
            nisa.tensor_copy(dst=v[0:count, i, :, 0:LANE], src=raw)
    # Neighbouring pieces of one slot leave PSUM together, as they share an age.
    for group in groups(chunk, per):
        first, slot = group[0], chunk[group[0]][2]
        end = (len(group) - 1) * LANE + chunk[group[len(group) - 1]][1]
        for head in range(heads):
            bank = transpose_bank(c)
            for i in group:
                count = chunk[i][1]
                nisa.nc_transpose(
                    dst=bank[:, (i - first) * LANE : (i - first) * LANE + count],
                    data=c["raw_k"][0:count, i, head * LANE : (head + 1) * LANE],
                )
            out = k[:, head, first * LANE : first * LANE + end]
            if slot >= 0:
                nisa.tensor_scalar(
                    dst=out, data=bank[:, 0:end], op0=nl.add,
                    operand0=c["key_ages"][:, head, slot : slot + 1],
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
    """acc += exp(keys.T @ queries / sqrt(128) + bias).T @ [values | 1], over a chunk's pieces.

    `work` holds, for each piece, (keys, their column, values, their row, count, bias column or -1
    for the frame's own keys, whose bias is the layer's shift alone).
    Scores run `AHEAD` pieces before the products, so that TensorE never waits for ScalarE.
    """
    steps = [(head, i) for head in range(s["asked"]) for i in range(len(work))]
    weights, results = [], []
    for n in range(len(steps) + AHEAD):
        if n < len(steps):
            weights.append(score(s, c, t, steps[n][0], work[steps[n][1]]))
        if n >= AHEAD:
            head, i = steps[n - AHEAD]
            if i == 0:
                results = [next_of(c, "result"), next_of(c, "result")]
            weigh(s, c, t, head, work[i], weights[n - AHEAD], results, i == 0)
            if i == len(work) - 1:
                collect(s, c, t, head, results, acc, first)


def score(s, c, t, head, piece):
    """exp(keys.T @ queries / sqrt(128) + bias) of one piece and query head: [keys, tokens]."""
    columns = s["tiles"][t][1]
    keys, at, _, _, count, bias = piece
    bank = next_of(c, "score")[0:count, 0:columns]
    nisa.nc_matmul(
        dst=bank, stationary=keys[:, head // s["per_kv"], at : at + count],
        moving=c["q"][:, head, 0:columns], accumulate=False,
    )  # fmt: skip
    p = next_of(c, "ps")[0:count, 0:columns]
    added = c["scales"][0:count, 2:3]
    if bias >= 0:
        added = c["shifted_bias"][0:count, bias : bias + 1]
    nisa.activation(dst=p, op=nl.exp, data=bank, scale=LANE**-0.5, bias=added)
    return p


def weigh(s, c, t, head, piece, p, results, first):
    """results += p.T @ [values | 1]: 128 tokens by 129 columns, two to a bank."""
    _, _, values, row, count, _ = piece
    lanes = s["lanes"][t]
    for i in range(len(lanes)):
        at, n = lanes[i]
        column = i % 2 * (LANE + 1)
        nisa.nc_matmul(
            dst=results[i // 2][0:n, column : column + LANE + 1], stationary=p[:, at : at + n],
            moving=values[0:count, row, head // s["per_kv"], :], accumulate=not first,
        )  # fmt: skip


def collect(s, c, t, head, results, acc, first):
    """Adds one head's results over a chunk to what earlier chunks gave."""
    lanes = s["lanes"][t]
    for i in range(0, len(lanes), 2):
        n = lanes[i][1]
        pair = 2 if i + 1 < len(lanes) and lanes[i + 1][1] == n else 1
        add_result(acc, results[i // 2], head, i, pair, n, first)
        if pair == 1 and i + 1 < len(lanes):
            add_result(acc, results[i // 2], head, i + 1, 1, lanes[i + 1][1], first)


def add_result(acc, bank, head, lane, lanes, n, first):
    """One or two neighbouring lanes of `collect`, in one instruction."""
    column = lane % 2 * (LANE + 1)
    result = bank[0:n, column : column + lanes * (LANE + 1)].reshape((n, lanes, LANE + 1))
    to = acc[0:n, head, lane : lane + lanes]
    if first:
        nisa.tensor_copy(dst=to, src=result)
    else:
        nisa.tensor_tensor(dst=to, data1=to, data2=result, op=nl.add)


def divide(s, c, t, acc):
    """Divides by the sums, and puts features on partitions again, in place of the queries or, to
    be multiplied in eight bits, beside them."""
    lanes = s["lanes"][t]
    per = c["half"] // LANE
    sums = nl.ndarray((LANE, s["asked"], 4), dtype=nl.float32, name="sums")
    for i in range(len(lanes)):
        n = lanes[i][1]
        nisa.reciprocal(dst=sums[0:n, :, i], data=acc[0:n, :, i, LANE])
    for head in range(s["asked"]):
        for first in range(0, len(lanes), per):
            bank = transpose_bank(c)
            last = min(first + per, len(lanes))
            for i in range(first, last):
                at, n = lanes[i]
                rows = next_of(c, "square")[0:n]
                nisa.tensor_scalar(
                    dst=rows, data=acc[0:n, head, i, 0:LANE], op0=nl.multiply,
                    operand0=sums[0:n, head, i : i + 1],
                )  # fmt: skip
                to = (i - first) * LANE
                nisa.nc_transpose(dst=bank[:, to : to + n], data=rows)
            begin = lanes[first][0]
            end = lanes[last - 1][0] + lanes[last - 1][1]
            nisa.tensor_copy(
                dst=c["attended"][:, head, begin:end], src=bank[:, 0 : end - begin],
                engine=nisa.engine.scalar,
            )  # fmt: skip
