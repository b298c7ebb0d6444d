"""Two processes on this machine train one model, as two hosts would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

SMALL = (
    "model.height=32", "model.width=32", "model.patch=8", "model.dim=32", "model.layers=1",
    "model.mlp=64", "model.prompt_tokens=4", "model.reference_tokens=4", "model.text_dim=32",
    "model.text_layers=1", "model.detail_dim=8", "train.batch=4", "train.frames=2",
    "train.steps=3", "train.log_every=1", "train.sample_every=2", "train.checkpoint_every=2",
)  # fmt: skip

WORKER = """
import sys, jax
from jax.experimental import multihost_utils

def compare(x, *rest, of=multihost_utils.assert_equal, **named):
    if getattr(x, "size", 1) > 1000:
        raise AssertionError("a batch went to all hosts, to be compared")
    return of(x, *rest, **named)

multihost_utils.assert_equal = compare
jax.config.update("jax_cpu_collectives_implementation", "gloo")
address, rank, *arguments = sys.argv[1:]
jax.distributed.initialize(address, 2, int(rank))
from lsd_jax.cli.main import main
sys.exit(main(arguments))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [
        ("forcing",),
        # Long enough for streams that go on, some of which carry on.
        ("history", "--set", "history.rolled_out=0.5", "--set", "train.carry_on=0.5",
         "--set", "train.steps=10"),
    ],
    ids=lambda x: x[0],
)  # fmt: skip
def test_two_hosts_train_what_one_does(stage, tmp_path):
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = ["train", "tiny", *settings, "--stage", *stage]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    one = [sys.executable, "-m", "lsd_jax.cli.main", *command, "--out", str(tmp_path / "one")]
    flags = os.environ["XLA_FLAGS"].split()  # quick compiles, and one device a process
    plain = os.environ | {"XLA_FLAGS": " ".join(x for x in flags if "device_count" not in x)}
    subprocess.run(one, check=True, timeout=600, env=plain)
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(rank), *command,
             "--out", str(tmp_path / "two"), "--mesh", "data=2"],
            env=plain,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert [host.wait(timeout=600) for host in hosts] == [0, 0]
    finally:
        for host in hosts:
            host.kill()
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert (tmp_path / "two" / "samples" / "0000002.png").is_file()
    assert (tmp_path / "two" / "weights" / "digests.json").is_file()
