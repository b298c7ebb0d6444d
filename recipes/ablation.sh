#!/usr/bin/env bash
# What each part of history augmentation adds: a model of 0.4 M parameters at 32x32 is trained on clips
# whose history is true, and from there as often as there are parts, each on the same budget.
#
#     recipes/ablation.sh                     one core: an hour and a half, most of it for the drift penalty
#     recipes/ablation.sh --frames 10000      an hour and ten minutes more, for streams ten times as long
#
# Run it again to go on where it stopped. Arguments go to benchmarks.ablation, such as --only plain.
set -euo pipefail
cd "$(dirname "$0")/.."
lsd=${LSD:-.venv/bin/lsd}
run=runs/ablation
small=(--set model.height=32 --set model.width=32 --set model.patch=4 --set model.dim=64 --set model.mlp=256
  --set train.frames=6)
"$lsd" train configs/micro.py --stage forcing --out "$run/base" "${small[@]}" --set train.steps=1000
"$(dirname "$(command -v "$lsd")")/python" -m benchmarks.ablation --config micro --init "$run/base/weights" \
  --steps 350 --frames 1000 --out "$run/parts" "${small[@]}" --set train.learning_rate=1e-3 "$@"
