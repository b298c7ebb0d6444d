"""Lowers a training step for eight TPUs, in a process of its own, and prints what each kernel in it
makes first: those of attention make it of a device's rows and heads."""

import json
import os
import re

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from lsd_jax import sharding, stream  # noqa: E402
from lsd_jax.config import Config, ModelConfig, TrainConfig  # noqa: E402
from lsd_jax.data.batch import Batch  # noqa: E402
from lsd_jax.train.forcing import forcing_loss  # noqa: E402
from lsd_jax.train.step import abstract_state, make_step  # noqa: E402

CONFIG = Config(
    "trained",
    ModelConfig(
        height=128, width=128, patch=8, dim=128, layers=1, heads=2, head_width=128, mlp=128,
        window=1, prompt_tokens=4, reference_tokens=4, text_dim=32, text_layers=1, detail_dim=8,
    ),
    train=TrainConfig(batch=8, frames=2, compute_dtype="bfloat16", backend="pallas"),
)  # fmt: skip


def main() -> None:
    devices = topologies.get_topology_desc("v6e:2x4", "tpu").devices
    mesh = sharding.make_mesh(1, 4, 2, devices)
    model, train = CONFIG.model, CONFIG.train
    shape = (train.batch, train.frames, model.height, model.width)

    def of(*last: int):
        return jax.ShapeDtypeStruct((*shape, *last), "uint8")

    condition = stream.abstract_condition(CONFIG, train.batch)
    batch = Batch(source=of(3), target=of(3), controls=of(1), condition=condition)
    step = make_step(CONFIG, forcing_loss, mesh).lower(abstract_state(CONFIG, mesh), batch)
    kernels = [x for x in step.as_text().splitlines() if "@tpu_custom_call" in x]
    print(json.dumps([re.findall(r"-> \(?tensor<(\w+)>", x)[-1] for x in kernels]))


if __name__ == "__main__":
    main()
