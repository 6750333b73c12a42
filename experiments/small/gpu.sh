#!/usr/bin/env bash
# The recipe of `make small` for one GPU and about ten minutes of training: ViT-B, batch 16.
#
#   experiments/small/gpu.sh DATA [KEY VALUE ...]
#
# DATA is the folder of `make small`; KEY VALUE overrides hold for every stage. The same command
# continues after an interruption. Variables, with their defaults:
#   WEIGHTS=dinov2    backbone: a file, or a name that is downloaded; REGISTERS=4 belongs to it
#   SIZE=B OUTPUT=output/small_gpu SEED=0 PYTHON=python BATCH=16 WORKERS=8
#   STEPS=800         of each of the six stages
# Figures and the page go to OUTPUT; nothing is published.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 DATA [KEY VALUE ...]" >&2; exit 2; }
data=$(realpath "$1")
shift
output=$(realpath -m "${OUTPUT:-output/small_gpu}")
weights=${WEIGHTS:-dinov2}
[ ! -e "$weights" ] || weights=$(realpath "$weights")
cd "$(dirname "$0")/../.."

settings=(
  MODEL.EOMT.SIZE "${SIZE:-B}" MODEL.EOMT.NUM_REGISTERS "${REGISTERS:-4}"
  MODEL.EOMT.NUM_QUERIES 100 SOLVER.IMS_PER_BATCH "${BATCH:-16}"
  SOLVER.MAX_ITER "${STEPS:-800}" DATALOADER.NUM_WORKERS "${WORKERS:-8}"
)

run() { # ARGUMENTS -- KEY VALUE ...
  local arguments=()
  while [ "$1" != -- ]; do arguments+=("$1"); shift; done
  shift
  "${PYTHON:-python}" experiments/run.py configs/small/recipe.yaml --data "$data" \
    --output "$output" --seed "${SEED:-0}" "${arguments[@]}" "${settings[@]}" "$@"
}

run --only check,cut_paste --
# What only some data folders allow has to be named by its stage, so it is asked for if it exists.
if [ -e "$data/tiny_coco/val2017" ]; then run --only anomaly_set --; fi
# Only the first stage starts from the backbone, and the page has to name it.
run --only eomt_baseline -- MODEL.WEIGHTS "$weights" "$@"
run --only logitnorm,arcface,arcface_full,arcface_lora,arcface_lora_beyond -- "$@"
run --page -- MODEL.WEIGHTS "$weights" "$@"
