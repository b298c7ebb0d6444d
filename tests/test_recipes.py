"""The recipes run through and ask for what there is; commands only note what they are asked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lsd_jax import config as configs
from lsd_jax.pretrained import load_settings

ROOT = Path(__file__).parent.parent
NOTES = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> asked
while [ $# -gt 0 ]; do
  case $1 in
  --out) out=$2 ;;
  train.steps=*) steps=${1#*=} ;;
  esac
  shift
done
if [ -n "${out:-}" ]; then mkdir -p "$out/weights" "$out/checkpoints/${steps:-0}"; fi
"""


@pytest.mark.parametrize(
    ("recipe", "makes"),
    [("tiny.sh cpu", "checkpoints/tiny"), ("tiny.sh gpu", "checkpoints/tiny"),
     ("recall.sh", "checkpoints/recall"), ("ablation.sh --only plain", "runs/ablation/base"),
     ("pruned.sh", "checkpoints/tiny_pruned")],
)  # fmt: skip
def test_a_recipe_runs_through(recipe, makes, tmp_path):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    for name in ("lsd", "python"):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(NOTES)
        command.chmod(0o755)
    environment = os.environ | {"LSD": str(tmp_path / "bin" / "lsd")}
    script, *arguments = recipe.split()
    run = ["bash", str(tmp_path / "recipes" / script), *arguments]
    done = subprocess.run(run, cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / makes).is_dir()
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    trained = [words for words in asked if words[:2] == ["lsd", "train"]]
    assert trained
    for words in trained:
        source = words[2] if words[2].endswith(".py") else "checkpoints/tiny"  # or cut out of it
        configs.override(
            load_settings(str(ROOT / source)),
            [b for a, b in zip(words, words[1:], strict=False) if a == "--set"],
        )


def test_every_recipe_is_run():
    tried = {"tiny.sh", "recall.sh", "ablation.sh", "pruned.sh"}
    assert {path.name for path in (ROOT / "recipes").iterdir()} == tried
