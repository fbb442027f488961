#!/usr/bin/env bash
# Train a key-frame selector on IoU files, on one GPU, several, several nodes, or the CPU. A stopped run goes on when
# started again.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    cat <<'TEXT'
usage: [VARIABLE=value ...] bash kfs/scripts/train_kfs.sh [options of `python -m kfs train`]

environment variables (default):
  IOU_PATH    folder of IoU files of all data sets, or one per data set joined by || (ious);
              python -m kfs annotate makes them
  CONFIG      recipe, a YAML file (configs/kfs.yaml)
  EXP_NAME    name of the run; checkpoints, log and model go to OUT_DIR/EXP_NAME (name of the recipe)
  COMPAT      corrected, or released: the original's training to the letter (the recipe's: corrected)
  DATA_DIR    folder that holds mevis, Refer-YouTube-VOS, ... (data)
  OUT_DIR     folder for runs (outputs)
  CKPT_DIR    pretrained parts (checkpoints of this repository): Chat-UniVi and, if it is not to come from the hub,
              clip-vit-large-patch14
  MODEL       start from this instead (a Chat-UniVi folder, a selector, or a hub id); a recipe that says where to
              start needs none
  VISION_TOWER
              CLIP for MODEL, if it lacks it
  NUM_GPUS    GPUs to use on each node (all); 0: none
  HOSTFILE    nodes, one line "name slots=N" each: start on all of them through DeepSpeed's launcher (this node only)
  VENV        environment folder (.venv of this repository)

Under `srun` every task is one process of the run. The selector is exported to OUT_DIR/EXP_NAME/model at the end, with
LoRA merged. `--dry_run` builds everything, shows what learns and how long a step takes. All options:
  python -m kfs train --help
TEXT
    exit 0
fi

source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/environment.sh"
source "$root/scripts/launch_training.sh"
CONFIG=${CONFIG:-$root/configs/kfs.yaml}
CKPT_DIR=${CKPT_DIR:-$root/checkpoints}

arguments=(
    --config "$CONFIG"
    --dataset_dir "${DATA_DIR:-data}"
    --iou_path "${IOU_PATH:-ious}"
    --log_base_dir "${OUT_DIR:-outputs}"
    --exp_name "${EXP_NAME:-$(basename "$CONFIG" .yaml)}"
)
if [[ -n ${COMPAT:-} ]]; then arguments+=(--compat "$COMPAT"); fi
if [[ -z ${MODEL:-} ]] && ! grep -q '^model:' "$CONFIG"; then
    MODEL=$CKPT_DIR/Chat-UniVi
    if [[ -z ${VISION_TOWER:-} && -d $CKPT_DIR/clip-vit-large-patch14 ]]; then
        VISION_TOWER=$CKPT_DIR/clip-vit-large-patch14
    fi
fi
if [[ -n ${MODEL:-} ]]; then arguments+=(--version "$MODEL"); fi
if [[ -n ${VISION_TOWER:-} ]]; then arguments+=(--vision-tower "$VISION_TOWER"); fi
launch kfs "${arguments[@]}" "$@"
