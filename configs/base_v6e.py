"""512x512, `base` in heads of 256, which fill the 256 x 256 matrix units of a TPU v6e or 7x.

lsd plan base_v6e --chip v6e

Heads of 128 half-fill such a unit, so a layer of `base` takes at least 1.23 times what its
multiply-adds would. Here are four heads of 256 in place of its ten of 128, which two or four chips
can share, and an MLP of 5,632: blocks of as many parameters, and a fifth fewer multiply-adds with
keys and values. On chips with units of 128 the latter is all that is gained. Nobody has trained it
yet.
"""

from lsd_jax.config import Config, ModelConfig, StreamConfig, TrainConfig

config = Config(
    name="base_v6e",
    model=ModelConfig(
        height=512,
        width=512,
        dim=1280,
        layers=12,
        heads=4,
        head_width=256,
        mlp=5632,
        window=4,
        sinks=1,
        prompt_tokens=128,
        reference_tokens=128,
        text_dim=512,
        text_layers=4,
        detail_dim=48,
    ),
    stream=StreamConfig(compute_dtype="bfloat16"),
    train=TrainConfig(
        compute_dtype="bfloat16", batch=64, frames=6, steps=300_000, learning_rate=5e-4
    ),
)
