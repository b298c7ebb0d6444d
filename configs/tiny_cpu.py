"""128x128, 26.1 M parameters, 22.105 ms a frame on cpu (modelled),
as `tiny` takes with 8.1 M. After 200 steps each `tiny` is ahead of it (docs/plan.md).

Found by

    lsd search --chip cpu --config tiny --fps 45
"""

from lsd_jax.config import Config, HistoryConfig, ModelConfig, TrainConfig

config = Config(
    name="tiny_cpu",
    model=ModelConfig(
        patch=32,
        dim=512,
        heads=1,
        head_width=256,
        mlp=1792,
        memory=2,
    ),
    train=TrainConfig(
        steps=600,
        warmup=20,
        ema=0.99,
        pure_noise=0.85,
        prompt_drop=0.0,
    ),
    history=HistoryConfig(
        rolled_out=0.25,
    ),
)
