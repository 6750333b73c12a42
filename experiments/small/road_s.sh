#!/usr/bin/env bash
# Train, pack and evaluate the model that ships, road-s: about an hour of one CPU core.
#
#   experiments/small/road_s.sh DATA [KEY VALUE ...]
#
# It goes on from stage 3 of `make small`, so run that first. DATA is the same folder; of CamVid and IDD it
# holds camvid/train with camvid/trainannot and idd_lite/idd20k_lite, whose photographs go into the
# memory as well. KEY VALUE overrides hold for both trainings. The same command continues after an
# interruption. Variables, with their defaults:
#   STAGE3=output/small/arcface_full/model_final.pth
#   OUTPUT=output/small/road_s PYTHON=python
#   PACKED=$OUTPUT/road_s.safetensors   what to write; the file that ships is
#                                       anoseg_d2/weights/road_s.safetensors
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 DATA [KEY VALUE ...]" >&2; exit 2; }
DETECTRON2_DATASETS=$(realpath "$1")
export DETECTRON2_DATASETS
shift
stage3=$(realpath -m "${STAGE3:-output/small/arcface_full/model_final.pth}")
output=$(realpath -m "${OUTPUT:-output/small/road_s}")
packed=$(realpath -m "${PACKED:-$output/road_s.safetensors}")
cd "$(dirname "$0")/../.."
anoseg() { "${PYTHON:-python}" -m anoseg_d2 "$@"; }

# The whole network trains on, on the roads of three countries.
anoseg train --resume --config-file configs/small/road_s_full.yaml MODEL.WEIGHTS "$stage3" \
  OUTPUT_DIR "$output/full" "$@"
# The mean of before and after finds large objects as the one does, and small ones as the other. What
# it changed in the ViT becomes adapters, which then train on.
start=$output/start.pth
[ -e "$start" ] || "${PYTHON:-python}" experiments/small/extract_lora.py "$stage3" \
  "$output/full/model_ema.pth" --base dinov2-s --rank 16 --output "$start"
anoseg train --resume --config-file configs/small/road_s.yaml MODEL.WEIGHTS "$start" \
  OUTPUT_DIR "$output/adapters" "$@"

# Photographs of three countries, the same number of patches of each.
normal=$output/normal
if [ ! -e "$normal/done" ]; then
  mkdir -p "$normal"
  for folder in cityscapes/leftImg8bit/train camvid/train idd_lite/idd20k_lite/leftImg8bit/train; do
    [ -d "$DETECTRON2_DATASETS/$folder" ] || continue
    find -L "$DETECTRON2_DATASETS/$folder" -type f \( -name '*.png' -o -name '*.jpg' \) | sort > "$normal/list"
    step=$(( ($(wc -l < "$normal/list") + 99) / 100 ))
    awk "NR % $step == 0" "$normal/list" | while read -r file; do
      ln -sf "$file" "$normal/$(echo "$folder" | cut -d/ -f1)_$(basename "$file")"
    done
  done
  touch "$normal/done"
fi
anoseg memory "$output/adapters/model_ema.pth" --images "$normal" --blocks 6 9 12 --rows 500 --overwrite \
  --output "$output/with_memory.pth"
anoseg convert "$output/with_memory.pth" --to adapter --base dinov2-s --half --overwrite \
  --inference TEST.ANOMALY.SCORES "('joint',)" --inference TEST.SCALES "(1, 2)" \
  --inference TEST.WINDOW_OVERLAP 0.25 --inference TEST.WINDOW_TAPER True \
  --output "$packed"
