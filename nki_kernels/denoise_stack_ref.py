"""The megakernel's reference: the same arguments, in plain NumPy and float32."""

from __future__ import annotations

import numpy as np

from nki_kernels.plan import LANE, SECOND, Shapes

EPSILON = 1e-6


def denoise_stack_ref(
    shapes: Shapes, x, weights, k_buffer, v_buffer, bias, onehot, age_k, age_v, scales,
    modulation, rope, rotation,
):  # fmt: skip
    """What `denoise_stack.body` computes on one rank of one, or on all cores that act as one; its
    docstring gives the arguments.

    Returns:
        x [B, 128, D1, T] float32; k_new, v_new [L, B, T, cores * W] float32.
    """
    given = (x, weights, k_buffer, v_buffer, bias, onehot, age_k, age_v, scales, modulation,
             rope, rotation)  # fmt: skip
    (x, weights, k_buffer, v_buffer, bias, onehot, age_k, age_v, scales, modulation, rope,
     rotation) = (np.asarray(a).astype(np.float32) for a in given)  # fmt: skip
    heads, head, tokens = shapes.heads * shapes.cores, shapes.head, shapes.tokens

    def narrow(values):
        """As it is multiplied by a matrix."""
        eight = np.dtype(shapes.weight_dtype or np.float32)
        return values.astype(eight).astype(np.float32)

    cos, sin = (np.tile(table.T[:, None], shapes.parts) for table in rope)  # [T, 1, K]
    out, k_new, v_new = np.zeros_like(x), [], []
    for b in range(shapes.sessions):
        y = x[b].transpose(2, 1, 0).reshape(tokens, shapes.dim)  # [T, D]
        for layer in range(shapes.layers):
            mod = modulation[layer, min(b, modulation.shape[1] - 1)]  # [128, 6, D1]
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = mod.transpose(1, 2, 0).reshape(
                6, -1
            )

            def matrix(kind, layer=layer):
                cores = [unpack(own[layer], kind, shapes) for own in weights]
                return np.concatenate(cores, axis=0 if kind in ("out", "down") else 1)

            def turned(values, column, layer=layer):
                own = scales[layer, :, column::SECOND][:, : shapes.parts].T.ravel()
                of_matrix = scales[layer, 0, column + 3]
                raw = values.reshape(tokens, -1, head) * of_matrix
                values = normed(raw) * own / of_matrix
                if shapes.parts == 1:
                    return values * cos + (values @ rotation) * sin
                low, high = np.split(values, 2, axis=-1)
                return values * cos + np.concatenate([-high, low], axis=-1) * sin

            h = narrow(normed(y) * scale_a + shift_a)
            q, k = turned(h @ matrix("q"), 0), turned(h @ matrix("k"), 1)
            v = (h @ matrix("v") * scales[layer, 0, 5]).reshape(tokens, heads, head)
            k_new.append(k)
            v_new.append(v)
            keys, values, logit_bias = [k], [v], [np.zeros(tokens, np.float32)]
            for j, piece in enumerate(shapes.buffer_pieces):
                rows = piece.start + piece.step * np.arange(piece.count)
                added_k = added_v = np.zeros(heads * head, np.float32)
                if piece.slot >= 0:
                    chosen = onehot[b, :, piece.slot, 0]
                    added_k, added_v = chosen @ age_k[layer], chosen @ age_v[layer]
                keys.append((k_buffer[layer, b, rows] + added_k).reshape(-1, heads, head))
                values.append((v_buffer[layer, b, rows] + added_v).reshape(-1, heads, head))
                logit_bias.append(bias[b, : piece.count, j])
            q = q.reshape(tokens, heads, shapes.per_kv, head)
            logits = np.einsum("thgk,nhk->hgtn", q, np.concatenate(keys)) * head**-0.5
            logits += np.concatenate(logit_bias) + scales[layer, 0, 2]
            share = np.exp(logits - logits.max(-1, keepdims=True))
            share /= share.sum(-1, keepdims=True)
            attended = np.einsum("hgtn,nhk->thgk", share, np.concatenate(values))
            y = y + gate_a * (narrow(attended.reshape(tokens, -1)) @ matrix("out"))
            h = narrow(normed(y) * scale_m + shift_m) @ matrix("up") * scales[layer, 0, 6]
            gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
            y = y + gate_m * (narrow(gelu) @ matrix("down"))
        out[b] = y.reshape(tokens, -1, LANE).transpose(2, 1, 0)
    shape = (shapes.sessions, shapes.layers, tokens, heads * head)
    k_new, v_new = (np.stack(a).reshape(shape).swapaxes(0, 1) for a in (k_new, v_new))
    return out, k_new, v_new


def normed(values: np.ndarray) -> np.ndarray:
    """Values over their root mean square along the last axis."""
    return values / np.sqrt(np.mean(values**2, axis=-1, keepdims=True) + EPSILON)


def unpack(blocks: np.ndarray, kind: str, shapes: Shapes) -> np.ndarray:
    """One matrix `[inputs, outputs]` out of a layer's packed blocks `[blocks, 128, block]`."""
    depth, columns = shapes.depth[kind], []
    for i, (_, count) in enumerate(shapes.tiles_of_block(kind)):
        block = blocks[shapes.first_block[kind] + i, :, : count * depth * LANE]
        if kind == "v":
            block = block.reshape(LANE, depth, count, LANE).swapaxes(1, 2)
        block = block.reshape(LANE, count, depth, LANE)  # partition, output tile, depth, output
        columns.append(block.transpose(2, 0, 1, 3).reshape(depth * LANE, count * LANE))
    return np.concatenate(columns, axis=1)
