#!/usr/bin/env bash
# Train and pack the model that ships, road-s, from what `make small` leaves: 20 minutes of one CPU core.
#
#   experiments/small/road_s.sh [KEY VALUE ...]
#
# If the data folder of `make small` holds camvid/train and idd_lite/idd20k_lite/leftImg8bit, their
# photographs go into the memory as well. KEY VALUE overrides hold for the training. The same command
# continues after an interruption. Variables, with their defaults:
#   SMALL=output/small                  output of `make small`
#   OUTPUT=$SMALL/road_s PYTHON=python
#   PACKED=$OUTPUT/road_s.safetensors   what to write; the file that ships is
#                                       anoseg_d2/weights/road_s.safetensors
set -euo pipefail

small=$(realpath "${SMALL:-output/small}")
output=$(realpath -m "${OUTPUT:-$small/road_s}")
packed=$(realpath -m "${PACKED:-$output/road_s.safetensors}")
export DETECTRON2_DATASETS=$small/datasets
cd "$(dirname "$0")/../.."
anoseg() { "${PYTHON:-python}" -m anoseg_d2 "$@"; }

# What stage 3 changed in the ViT becomes adapters, which then train on.
start=$output/start.pth
mkdir -p "$output"
[ -e "$start" ] || "${PYTHON:-python}" experiments/small/extract_lora.py \
  "$small/arcface_full/model_final.pth" --base dinov2-s --rank 16 --output "$start"
anoseg train --resume --config-file configs/small/road_s.yaml MODEL.WEIGHTS "$start" \
  OUTPUT_DIR "$output" "$@"

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
anoseg memory "$output/model_ema.pth" --images "$normal" --blocks 6 9 12 --rows 500 --overwrite \
  --output "$output/with_memory.pth"
anoseg convert "$output/with_memory.pth" --to adapter --base dinov2-s --half --overwrite \
  --inference TEST.ANOMALY.SCORES "('joint',)" --inference TEST.SCALES "(1, 2)" \
  --inference TEST.WINDOW_OVERLAP 0.25 --inference TEST.WINDOW_TAPER True \
  --output "$packed"
