"""The closed form for searches, against timelines of stacks that it was not fitted to."""

from dataclasses import replace

import numpy as np
import pytest

from lsd_jax.hw import chips, plan
from lsd_jax.hw.stack import StackShape
from nki_kernels import bench
from nki_kernels.closed_form import stacks_seconds

TRN2, EIGHT = chips.load("trn2"), "float8_e4m3"
STACKS = [
    StackShape(1, tokens, dim, layers, heads, 128, mlp, ageless, slots, slots + 1, 1, "bfloat16")
    for tokens, dim, layers, heads, mlp, ageless, slots in (
        (64, 256, 6, 2, 1024, 64, 3),
        (256, 512, 4, 4, 2048, 128, 4),
        (144, 384, 8, 3, 768, 64, 2),
        (256, 896, 3, 7, 1792, 256, 1),
        (320, 640, 5, 5, 1280, 64, 3),
        (512, 256, 4, 2, 512, 128, 2),
        (576, 1024, 3, 8, 4096, 128, 3),
    )
]


@pytest.mark.parametrize(
    ("ranks", "places", "weights", "per_kv", "parts"),
    [
        (1, 0, "", 1, 1), (2, 0, "", 1, 1), (4, 0, "", 1, 1), (1, 2, "", 1, 1), (2, 1, "", 1, 1),
        (1, 1, EIGHT, 1, 1), (2, 0, EIGHT, 1, 1), (1, 0, "", 2, 1), (1, 1, "", 4, 1),
        (1, 0, "", 1, 2), (2, 1, "", 1, 2), (1, 1, EIGHT, 1, 2), (1, 0, "", 2, 2),
    ],
)  # fmt: skip
def test_it_is_near_the_timeline(ranks, places, weights, per_kv, parts):
    """Heads may be two parts of 128 wide."""
    stacks = [stack for stack in STACKS if stack.heads % (ranks * per_kv * parts) == 0]
    changes = dict(places=places, weight_dtype=weights, per_kv=per_kv, head_dim=128 * parts)
    stacks = [replace(stack, heads=stack.heads // per_kv // parts, **changes) for stack in stacks]
    timed = np.array([bench.stack_seconds(stack, TRN2, ranks)[0] for stack in stacks])
    errors = np.abs(stacks_seconds(stacks, TRN2, ranks) / timed - 1)
    assert errors.mean() < 0.1 and errors.max() < (0.25 if places == 2 else plan.ROUGH_ERROR)


@pytest.mark.parametrize("name", ["trn1", "trn3"])
@pytest.mark.parametrize(("ranks", "places"), [(1, 0), (2, 1)])
def test_it_is_near_the_timeline_of_the_other_chips(name, ranks, places):
    chip = chips.load(name)
    stacks = [replace(stack, places=places) for stack in STACKS if stack.heads % ranks == 0]
    timed = np.array([bench.stack_seconds(stack, chip, ranks)[0] for stack in stacks])
    errors = np.abs(stacks_seconds(stacks, chip, ranks) / timed - 1)
    assert errors.mean() < 0.12 and errors.max() < plan.ROUGH_ERROR


def test_what_the_kernel_refuses_is_infinite():
    odd = StackShape(1, 64, 200, 2, 2, 128, 512, 64, 2, 3, 1, "bfloat16")
    assert stacks_seconds([odd], TRN2)[0] == pytest.approx(np.inf)
