"""128x128, 7.4 M parameters, 14.103 ms a frame on cpu (modelled), where `tiny` takes 18.7.
After 200 steps each it is as good (docs/plan.md).

Found by

    lsd search --chip cpu --config tiny --fps 70 --set model.window=3
"""

from lsd_jax.config import Config, HistoryConfig, ModelConfig, TrainConfig

config = Config(
    name="tiny_cpu",
    model=ModelConfig(
        dim=384,
        layers=3,
        heads=3,
        head_width=64,
        mlp=1152,
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
