"""1920x1080 (1088 rows, so that patches of 32 fit), 2,040 tokens, 1.3 B parameters: several chips.

lsd info lucy_1080p
lsd train configs/lucy_1080p.py --stage forcing --mesh fsdp=16,tensor=4 --distributed
"""

from lsd_jax.config import Config, ModelConfig, StreamConfig, TrainConfig

config = Config(
    name="lucy_1080p",
    model=ModelConfig(
        height=1088,
        width=1920,
        patch=32,
        dim=2048,
        layers=21,
        heads=16,
        mlp=8192,
        window=3,
        sinks=1,
        prompt_tokens=256,
        reference_tokens=256,
        text_dim=512,
        text_layers=4,
        detail_dim=48,
    ),
    stream=StreamConfig(compute_dtype="bfloat16"),
    train=TrainConfig(
        compute_dtype="bfloat16", batch=64, frames=6, steps=500_000, learning_rate=3e-4
    ),
)
