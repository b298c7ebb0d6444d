"""64x64, 1.5 M parameters: for experiments that train many models on a CPU, not for show.

lsd train configs/micro.py --stage forcing --set train.frames=1 --set train.batch=24
python -m benchmarks.ablation --config micro --init runs/micro-forcing/weights
"""

from lsd_jax.config import Config, HistoryConfig, ModelConfig, TrainConfig

config = Config(
    name="micro",
    model=ModelConfig(
        height=64, width=64, patch=8, dim=128, layers=4, heads=1, mlp=512,
        text_dim=64, text_layers=1, detail_dim=32,
    ),
    train=TrainConfig(
        batch=8, frames=4, steps=1500, learning_rate=2e-3, warmup=20, ema=0.99,
        pure_noise=0.85, prompt_drop=0.0,
    ),
    history=HistoryConfig(corrupted=0.5, rolled_out=0.25),
)  # fmt: skip
