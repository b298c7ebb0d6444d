"""64x64, 1.5 M parameters, one edit: what a memory does where the edit itself is no trouble.

    recipes/recall.sh

trains `checkpoints/recall`: "make the heart green", and it is to be green when it comes back.
"""

from lsd_jax.config import Config, HistoryConfig, ModelConfig, TrainConfig

config = Config(
    name="recall",
    model=ModelConfig(
        height=64, width=64, patch=8, dim=128, layers=4, heads=1, mlp=512,
        text_dim=64, text_layers=1, detail_dim=32, memory=2,
    ),
    train=TrainConfig(
        batch=16, frames=4, old_frames=2, carry_on=0.6, away=0.5,
        scene_fraction=1.0, scene_edits=("recolour",), mask_fraction=0.0,
        steps=1000, learning_rate=1e-3, warmup=20, ema=0.99, pure_noise=0.85, prompt_drop=0.0,
    ),
    history=HistoryConfig(corrupted=0.25, rolled_out=0.25),
)  # fmt: skip
