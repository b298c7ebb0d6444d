"""256x256, 29.0 M parameters: one GPU, TPU core or NeuronCore pair.

lsd info small
lsd train configs/small.py --stage forcing
"""

from lsd_jax.config import Config, ModelConfig, StreamConfig, TrainConfig

config = Config(
    name="small",
    model=ModelConfig(
        height=256,
        width=256,
        dim=512,
        layers=6,
        heads=4,
        mlp=2048,
        window=4,
        sinks=1,
        prompt_tokens=64,
        reference_tokens=64,
        text_dim=256,
        detail_dim=32,
    ),
    stream=StreamConfig(compute_dtype="bfloat16"),
    train=TrainConfig(compute_dtype="bfloat16", batch=32, frames=6, steps=100_000),
)
