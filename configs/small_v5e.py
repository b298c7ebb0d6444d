"""256x256, 52.0 M parameters, 0.355 ms a frame on v5e (modelled),
where `small` takes 0.346 with 29.0 M. Trained for a hundred steps, no more (docs/plan.md).

Found by

    lsd search --chip v5e --config small --fps 2800 --set model.window=4 --set model.sinks=1
"""

from lsd_jax.config import Config, ModelConfig, StreamConfig, TrainConfig

config = Config(
    name="small_v5e",
    model=ModelConfig(
        height=256,
        width=256,
        dim=768,
        layers=7,
        heads=3,
        head_width=128,
        mlp=2688,
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
