"""2048x1088, 1503.8 M parameters, 8.996 ms a frame on 8 cores of v6e (modelled),
where `lucy_1080p` of 1,324.6 M takes 8.89 at that width. Nobody has trained it yet.

Found by

    lsd search --chip v6e --config lucy_1080p --fps 30 --cores 8 --set model.width=2048 \
        --set model.window=3 --set model.sinks=1
"""

from lsd_jax.config import Config, ModelConfig, StreamConfig, TrainConfig

config = Config(
    name="lucy_v6e",
    model=ModelConfig(
        height=1088,
        width=2048,
        patch=32,
        dim=2048,
        layers=24,
        heads=8,
        head_width=256,
        mlp=8192,
        sinks=1,
        prompt_tokens=256,
        reference_tokens=256,
        text_dim=512,
        text_layers=4,
        detail_dim=48,
    ),
    stream=StreamConfig(
        compute_dtype="bfloat16",
        weight_dtype="int8",
    ),
    train=TrainConfig(
        batch=64,
        frames=6,
        steps=500000,
        learning_rate=0.0003,
        compute_dtype="bfloat16",
    ),
)
