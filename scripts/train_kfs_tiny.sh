#!/usr/bin/env bash
# Train kfs-tiny on generated videos, from how well glus-tiny segments each of their frames; then use it on unseen ones.
# Every stage goes on where it was when the same command is started again.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    cat <<'TEXT'
usage: [VARIABLE=value ...] bash scripts/train_kfs_tiny.sh [options of `python -m kfs train`]

Stages: generate videos; segment them by GLUS; annotate (IoU of every frame); train; score the held-out videos; compare
the scores with the true IoUs; segment the held-out videos from their key frames, and evaluate both ways.
The selector ends up in OUT_DIR/train/model.

environment variables (default):
  OUT_DIR      folder for everything (outputs/kfs_tiny)
  GLUS_MODEL   GLUS that segments, and that the selector starts from (checkpoints/glus-tiny)
  VIDEOS, HELD_OUT
               generated videos to train on and to hold out (300, 40)
  VIDEO_OPTIONS
               of `python -m glus data synthetic`, for both ("")
  ABSENT       what a frame counts that shows nothing of what is meant: one, zero or skip (zero)
  STEPS        optimizer steps (those of configs/kfs_tiny.yaml)
  WORKERS      inference processes (1)
  VENV         environment folder (.venv of this repository)
TEXT
    exit 0
fi

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
out=${OUT_DIR:-outputs/kfs_tiny}
glus=${GLUS_MODEL:-checkpoints/glus-tiny}
data=$out/data
export WORKERS=${WORKERS:-1} DATA_DIR=$data VAL_SET=mevis OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
read -ra video_options <<<"${VIDEO_OPTIONS:-}"

make_ious() { # split, videos, seed
    if [[ ! -f $data/mevis/$1/meta_expressions.json ]]; then
        "$python" -m glus data synthetic --out "$data" --set_name "$1" --videos "$2" --seed "$3" \
            ${video_options[@]+"${video_options[@]}"}
    fi
    # without key frames, whatever SCORE_JSON the caller has exported
    SCORE_JSON='' MODEL=$glus SET_NAME=$1 SAVE_DIR=$out/masks_$1 bash scripts/inference.sh
    "$python" -m kfs annotate --dataset "mevis:$1" --dataset_dir "$data" --pred_path "$out/masks_$1" \
        --iou_path "$out/ious_$1" --absent "${ABSENT:-zero}"
}

evaluate() { # masks, JSON file
    "$python" utils/eval_mevis.py --mevis_exp_path "$data/mevis/valid_u/meta_expressions.json" \
        --mevis_mask_path "$data/mevis/valid_u/mask_dict.json" --mevis_pred_path "$1" --json "$2" --save_name "$2.original"
}

make_ious train "${VIDEOS:-300}" 4100
make_ious valid_u "${HELD_OUT:-40}" 4200
steps=()
if [[ -n ${STEPS:-} ]]; then steps=(--steps "$STEPS"); fi
CONFIG=configs/kfs_tiny.yaml EXP_NAME=train OUT_DIR=$out IOU_PATH=$out/ious_train NUM_GPUS=${NUM_GPUS:-0} \
    bash kfs/scripts/train_kfs.sh --from_glus "$glus" --val_iou_path "$out/ious_valid_u" ${steps[@]+"${steps[@]}"} "$@"
MODEL=$out/train/model SET_NAME=valid_u SAVE_DIR=$out/scores bash kfs/scripts/inference_kfs.sh
"$python" -m kfs evaluate "$out/scores" "$out/ious_valid_u"
MODEL=$glus SET_NAME=valid_u SAVE_DIR=$out/masks_key_frames SCORE_JSON=$out/scores/key_frames.json \
    bash scripts/inference_kf.sh
echo "without key frames:"
evaluate "$out/masks_valid_u" "$out/scores_first_frame.json"
echo "with key frames:"
evaluate "$out/masks_key_frames" "$out/scores_key_frames.json"
