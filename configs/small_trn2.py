"""256x256, 53.1 M parameters, 1.864 ms a frame on one core of trn2, 1.741 on three
(modelled), where `small` takes 1.994 on one core and 1.830 on four with 29.0 M. Trained for a
hundred steps, no more (docs/plan.md).

Found by

    lsd search --chip trn2 --config small --fps 535 --set model.window=4 --set model.sinks=1
"""

from lsd_jax.config import Config, ModelConfig, StreamConfig, TrainConfig

config = Config(
    name="small_trn2",
    model=ModelConfig(
        height=256,
        width=256,
        patch=32,
        dim=768,
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
    ),
    train=TrainConfig(
        batch=32,
        frames=6,
        steps=100000,
        compute_dtype="bfloat16",
    ),
)
