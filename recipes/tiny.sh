#!/usr/bin/env bash
# Trains the shipped checkpoint: first on single pictures, then on clips whose history is imperfect.
#
#     recipes/tiny.sh cpu     two cores: about three hours, going by the clips/s in docs/recipes.md
#     recipes/tiny.sh gpu     one large GPU, in bfloat16
#
# Run it again to go on where it stopped. MINUTES=9 stops each stage after so long.
# Replaces checkpoints/tiny; `rm -r checkpoints/tiny; git checkout checkpoints/tiny` brings the
# shipped one back.
set -euo pipefail
cd "$(dirname "$0")/.."
machine=${1:?cpu or gpu}
run=runs/tiny-$machine
case $machine in
cpu)
  steps=4000 clip_steps=1000
  pictures=(--set train.batch=24)
  clips=()
  ;;
gpu)
  bf16=(--set train.compute_dtype=bfloat16 --set train.ema=0.999)
  steps=12000 clip_steps=8000
  pictures=("${bf16[@]}" --set train.batch=256)
  clips=("${bf16[@]}" --set train.batch=64)
  ;;
*)
  echo "recipes/tiny.sh: $machine is neither cpu nor gpu" >&2
  exit 2
  ;;
esac
done_or_exit() {
  if [ ! -d "$1" ]; then
    echo "not done yet; run it again"
    exit 0
  fi
}
lsd=${LSD:-.venv/bin/lsd}
limit=(${MINUTES:+--minutes "$MINUTES"})
"$lsd" train configs/tiny.py --stage forcing --out "$run/pictures" --set train.frames=1 \
  --set "train.steps=$steps" "${pictures[@]}" ${limit[@]+"${limit[@]}"}
done_or_exit "$run/pictures/checkpoints/$steps"
"$lsd" train configs/tiny.py --stage history --out "$run/clips" --init "$run/pictures/weights" \
  --set train.frames=4 --set "train.steps=$clip_steps" ${clips[@]+"${clips[@]}"} \
  ${limit[@]+"${limit[@]}"}
done_or_exit "$run/clips/checkpoints/$clip_steps"
mkdir -p checkpoints
rm -rf checkpoints/.tiny.new
cp -r "$run/clips/weights" checkpoints/.tiny.new
rm -rf checkpoints/tiny
mv checkpoints/.tiny.new checkpoints/tiny
"$lsd" eval checkpoints/tiny --json "$run/eval.json" --plots "$run/plots"
