#!/usr/bin/env bash
# Train by a configuration, on one GPU, several, several nodes, or the CPU. A stopped run goes on when started again.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    cat <<'TEXT'
usage: [VARIABLE=value ...] bash scripts/train.sh [options of `python -m glus train`]

environment variables (default):
  CONFIG      recipe, a YAML file (configs/train_glus_s.yaml)
  EXP_NAME    name of the run; checkpoints, log and model go to OUT_DIR/EXP_NAME (name of the recipe)
  COMPAT      corrected, or released: the original's training to the letter (the recipe's: corrected)
  DATA_DIR    folder that holds mevis, Refer-YouTube-VOS, ... (data)
  OUT_DIR     folder for runs (outputs)
  CKPT_DIR    pretrained parts (checkpoints of this repository): LISA-7B-v1, sam2_hiera_large.pt and, if it is not to
              come from the hub, clip-vit-large-patch14
  MODEL       start from this checkpoint instead (a GLUS folder of ours or as released, or a hub id)
  SAM2_CHECKPOINT, VISION_TOWER
              SAM-2 and CLIP for MODEL, if it lacks them
  NUM_GPUS    GPUs to use on each node (all); 0: none
  HOSTFILE    nodes, one line "name slots=N" each: start on all of them through DeepSpeed's launcher (this node only)
  VENV        environment folder (.venv of this repository)

Under `srun` every task is one process of the run. The model is exported to OUT_DIR/EXP_NAME/model at the end.
`--dry_run` builds everything, shows what learns and how long a step takes. All options:
  python -m glus train --help
TEXT
    exit 0
fi

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$root/scripts/launch_training.sh"
CONFIG=${CONFIG:-$root/configs/train_glus_s.yaml}
CKPT_DIR=${CKPT_DIR:-$root/checkpoints}
name=$(basename "$CONFIG" .yaml)

arguments=(
    --config "$CONFIG"
    --dataset_dir "${DATA_DIR:-data}"
    --log_base_dir "${OUT_DIR:-outputs}"
    --exp_name "${EXP_NAME:-${name#train_}}"
)
if [[ -n ${COMPAT:-} ]]; then arguments+=(--compat "$COMPAT"); fi
if [[ -z ${MODEL:-} ]]; then
    MODEL=$CKPT_DIR/LISA-7B-v1
    SAM2_CHECKPOINT=${SAM2_CHECKPOINT:-$CKPT_DIR/sam2_hiera_large.pt}
    if [[ -z ${VISION_TOWER:-} && -d $CKPT_DIR/clip-vit-large-patch14 ]]; then
        VISION_TOWER=$CKPT_DIR/clip-vit-large-patch14
    fi
fi
arguments+=(--version "$MODEL")
if [[ -n ${SAM2_CHECKPOINT:-} ]]; then arguments+=(--vision_pretrained "$SAM2_CHECKPOINT"); fi
if [[ -n ${VISION_TOWER:-} ]]; then arguments+=(--vision-tower "$VISION_TOWER"); fi

launch glus "${arguments[@]}" "$@"
