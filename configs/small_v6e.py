"""256x256, 42.2 M parameters, 0.226 ms a frame on v6e (modelled),
as `small` takes with 29.0 M. Trained for a hundred steps, no more (docs/plan.md).

Found by

    lsd search --chip v6e --config small --fps 4400 --set model.window=4 --set model.sinks=1
"""

from lsd_jax.config import Config, ModelConfig, StreamConfig, TrainConfig

config = Config(
    name="small_v6e",
    model=ModelConfig(
        height=256,
        width=256,
        dim=768,
        heads=3,
        head_width=128,
        mlp=2304,
        window=4,
        sinks=1,
        prompt_tokens=64,
        reference_tokens=64,
        text_dim=256,
        detail_dim=32,
    ),
    stream=StreamConfig(
        compute_dtype="bfloat16",
        weight_dtype="int8",
    ),
    train=TrainConfig(
        batch=32,
        frames=6,
        steps=100000,
        compute_dtype="bfloat16",
    ),
)
