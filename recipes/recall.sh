#!/usr/bin/env bash
# Shows what a long memory does: trains configs/recall.py to recolour objects, first on single
# pictures, then on clips whose object goes away, and looks at it when it is back.
#
#     recipes/recall.sh       two cores: about two hours
#
# Run it again to go on where it stopped.
# Replaces checkpoints/recall; `rm -r checkpoints/recall; git checkout checkpoints/recall` brings the
# shipped one back.
set -euo pipefail
cd "$(dirname "$0")/.."
run=runs/recall
lsd=${LSD:-.venv/bin/lsd}
"$lsd" train configs/recall.py --stage forcing --out "$run/pictures" \
  --set train.old_frames=0 --set train.carry_on=0 --set train.away=0 --set train.frames=1 \
  --set train.batch=48 --set train.steps=3000 --set train.learning_rate=1.5e-3
"$lsd" train configs/recall.py --stage history --out "$run/clips" --init "$run/pictures/weights"
mkdir -p checkpoints
rm -rf checkpoints/.recall.new
cp -r "$run/clips/weights" checkpoints/.recall.new
rm -rf checkpoints/recall
mv checkpoints/.recall.new checkpoints/recall
"$(dirname "$(command -v "$lsd")")/python" -m benchmarks.recall checkpoints/recall --worlds 64 \
  --json "$run/recall.json" --picture "$run/recall.png"
