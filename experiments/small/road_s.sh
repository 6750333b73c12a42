#!/usr/bin/env bash
# Train and pack the model that ships, road-s, from what `make small` leaves: 80 minutes of one CPU core.
#
#   experiments/small/road_s.sh [KEY VALUE ...]
#
# If the data folder of `make small` holds camvid/train and idd_lite/idd20k_lite/leftImg8bit, their
# photographs are used as well. KEY VALUE overrides hold for the trainings. The same command
# continues after an interruption. Variables, with their defaults:
#   SMALL=output/small                  output of `make small`
#   OUTPUT=$SMALL/road_s PYTHON=python
#   DISTILL_STEPS="600 700"             of the two phases of distill.py
#   PACKED=$OUTPUT/road_s.safetensors   what to write; the file that ships is
#                                       anoseg_d2/weights/road_s.safetensors
set -euo pipefail

small=$(realpath "${SMALL:-output/small}")
output=$(realpath -m "${OUTPUT:-$small/road_s}")
packed=$(realpath -m "${PACKED:-$output/road_s.safetensors}")
export DETECTRON2_DATASETS=$small/datasets
cd "$(dirname "$0")/../.."
anoseg() { "${PYTHON:-python}" -m anoseg_d2 "$@"; }
experiment() { "${PYTHON:-python}" "experiments/small/$1.py" "${@:2}"; }

# Stage 3 twice more, with small objects pasted while loading. The mean of all three starts the rest.
stage3=$small/arcface_full/model_final.pth whole=$output/whole.pth start=$output/start.pth
mkdir -p "$output"
for seed in 0 1; do
  anoseg train --resume --config-file configs/small/small_pastes.yaml SEED "$seed" DATASETS.TEST "()" \
    MODEL.WEIGHTS "$small/arcface/model_final.pth" OUTPUT_DIR "$output/small_pastes_$seed" "$@"
done
[ -e "$whole" ] ||
  experiment average "$stage3" "$output"/small_pastes_{0,1}/model_final.pth --output "$whole"

# What they changed in the ViT becomes adapters, which then train on with labels.
[ -e "$start" ] || experiment extract_lora "$whole" --base dinov2-s --rank 16 --output "$start"
anoseg train --resume --config-file configs/small/road_s.yaml MODEL.WEIGHTS "$start" \
  OUTPUT_DIR "$output" "$@"

# From the same start, they learn to answer as that mean does. The mean of both is better than each.
photographs=()
for folder in cityscapes_outlier/leftImg8bit/train camvid/train \
  idd_lite/idd20k_lite/leftImg8bit/train coco/train2017; do
  [ ! -d "$DETECTRON2_DATASETS/$folder" ] || photographs+=("$DETECTRON2_DATASETS/$folder")
done
[ -e "$output/distilled.pth" ] || experiment distill "$whole" "$start" --images "${photographs[@]}" \
  --steps ${DISTILL_STEPS:-600 700} --output "$output/distilled.pth"
experiment average "$output/model_ema.pth" "$output/distilled.pth" --output "$output/mean.pth"

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
anoseg memory "$output/mean.pth" --images "$normal" --blocks 6 9 12 --rows 480 --overwrite \
  --output "$output/with_memory.pth"
anoseg convert "$output/with_memory.pth" --to adapter --base dinov2-s --half --overwrite \
  --inference TEST.ANOMALY.SCORES "('joint',)" --inference TEST.SCALES "(1, 2)" \
  --inference TEST.WINDOW_OVERLAP 0.25 --inference TEST.WINDOW_TAPER True \
  --inference TEST.ANOMALY.GUIDED_FILTER 0.12 --inference TEST.SECOND_LOOK.SCALE 4 \
  --inference TEST.SECOND_LOOK.SCORE joint --inference TEST.SECOND_LOOK.ABOVE 1 \
  --output "$packed"
