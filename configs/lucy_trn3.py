"""1920x1088, 758.3 M parameters, 30.138 ms a frame on 8 cores of trn3 (modelled),
one chip of a server. Nobody has trained it yet.

Found by

    lsd search --chip trn3 --config lucy_1080p --fps 30 --cores 8 \
        --set model.window=3 --set model.sinks=1
"""

from lsd_jax.config import Config, ModelConfig, StreamConfig, TrainConfig

config = Config(
    name="lucy_trn3",
    model=ModelConfig(
        height=1088,
        width=1920,
        patch=32,
        dim=2048,
        layers=16,
        heads=8,
        head_width=128,
        mlp=7168,
        sinks=1,
        prompt_tokens=256,
        reference_tokens=256,
        text_dim=512,
        text_layers=4,
        detail_dim=48,
    ),
    stream=StreamConfig(
        compute_dtype="bfloat16",
    ),
    train=TrainConfig(
        batch=64,
        frames=6,
        steps=500000,
        learning_rate=0.0003,
        compute_dtype="bfloat16",
    ),
)
