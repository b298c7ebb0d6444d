#!/usr/bin/env bash
# Cuts a third of the work of a frame out of the shipped checkpoint, and has what is left learn from
# the whole what it has lost by that.
#
#     recipes/pruned.sh       one core: about an hour and a half
#
# Run it again to go on where it stopped. MINUTES=9 stops the training after so long.
# Replaces checkpoints/tiny_pruned; `rm -r checkpoints/tiny_pruned; git checkout checkpoints/tiny_pruned`
# brings the shipped one back.
set -euo pipefail
cd "$(dirname "$0")/.."
run=runs/pruned
steps=640
lsd=${LSD:-.venv/bin/lsd}
[ -d "$run/cut" ] || "$lsd" prune checkpoints/tiny --keep layers=5,mlp=384 -o "$run/cut"
"$lsd" train "$run/cut" --stage distill --out "$run/recovered" --init "$run/cut" \
  --set distill.teacher=checkpoints/tiny --set "train.steps=$steps" --set history.rolled_out=0 \
  --set train.seed=61 ${MINUTES:+--minutes "$MINUTES"}
if [ ! -d "$run/recovered/checkpoints/$steps" ]; then
  echo "not done yet; run it again"
  exit 0
fi
mkdir -p checkpoints
rm -rf checkpoints/.tiny_pruned.new
cp -r "$run/recovered/weights" checkpoints/.tiny_pruned.new
rm -rf checkpoints/tiny_pruned
mv checkpoints/.tiny_pruned.new checkpoints/tiny_pruned
for model in tiny tiny_pruned; do
  "$lsd" eval "checkpoints/$model" --worlds 2 --json "$run/$model.json" --plots "$run/$model"
done
