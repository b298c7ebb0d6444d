"""512x512, about 300 M parameters: one large GPU or TPU chip, or a Trainium2 core.

lsd info base
lsd train configs/base.py --stage forcing --mesh fsdp=8

Four heads of 256, which two or four devices can share: they fill the matrix units of a TPU v6e or
7x, which heads of 128 leave half empty, and multiply a fifth less with keys and values than ten of
those. The MLP is wider for it.
"""

from lsd_jax.config import Config, ModelConfig, StreamConfig, TrainConfig

config = Config(
    name="base",
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
