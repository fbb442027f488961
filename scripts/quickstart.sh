#!/usr/bin/env bash
# From a fresh clone to segmented videos: install, run the real inference script, evaluate, write a report.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    cat <<'TEXT'
usage: bash scripts/quickstart.sh
           segment sample videos by their sentences, evaluate, and write a report with overlay videos
       bash scripts/quickstart.sh VIDEO "sentence" ["sentence" ...]
           segment your own video (file or folder of images)

environment variables (default):
  MODEL    checkpoint folder or hub id ($CKPT_DIR/glus-tiny; CKPT_DIR: checkpoints of this repository)
  SELECTOR key-frame selector, to start where it says ($CKPT_DIR/kfs-tiny if that is there; empty: none)
  OUT_DIR  where results go (outputs/quickstart of this repository)
  WORKERS  inference processes on the CPU (one per core, at most 4)
  VIDEOS   number of sample videos (3)
  VENV, PYTHON, TORCH_INDEX_URL: see scripts/setup.sh --help
TEXT
    exit 0
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
venv=${VENV:-.venv}
if [[ $venv != /* ]]; then venv=$root/$venv; fi
python=$venv/bin/python
out=${OUT_DIR:-$root/outputs/quickstart}
checkpoints=${CKPT_DIR:-$root/checkpoints}
export MODEL=${MODEL:-$checkpoints/glus-tiny}
if [[ -z ${SELECTOR+set} && -d $checkpoints/kfs-tiny ]]; then SELECTOR=$checkpoints/kfs-tiny; fi
SELECTOR=${SELECTOR:-}
title="GLUS quickstart"

if (($# == 1)); then
    echo "error: a video needs at least one sentence; see bash scripts/quickstart.sh --help" >&2
    exit 2
elif (($# > 1)); then
    name=$(basename "${1%/}")
    own=$out/own/${name%.*}
    start=()
    if [[ -n $SELECTOR ]]; then start=(--key_frame auto --selector "$SELECTOR" --scores "${own}_scores.svg"); fi
    "$python" -m glus segment "$@" -o "$own.mp4" --captions --masks "${own}_masks" --version "$MODEL" \
        ${start[@]+"${start[@]}"}
    exit 0
fi

data=$out/data
split=$data/mevis/valid_u
masks=$out/masks
echo "quickstart: sample videos in $data"
"$python" -m glus data synthetic --out "$data" --set_name valid_u --videos "${VIDEOS:-3}" --seed 7

if ! command -v nvidia-smi >/dev/null && [[ -z ${WORKERS:-} ]]; then
    WORKERS=$("$python" -c 'from glus.evaluation.parallel import default_workers as n; print(min(4, n()))')
    export WORKERS
fi
export DATA_DIR=$data VAL_SET=mevis SET_NAME=valid_u
# --overwrite: a second quickstart, perhaps with another model, should just work
curves=()
if [[ -n $SELECTOR ]]; then
    echo "quickstart: key frames by $SELECTOR"
    MODEL=$SELECTOR SAVE_DIR=$out/key_frames bash "$root/kfs/scripts/inference_kfs.sh" --overwrite
    export SCORE_JSON=$out/key_frames/key_frames.json
    curves=(--key_frames "$out/key_frames/key_frame_scores.json")
fi
echo "quickstart: inference with $MODEL"
SAVE_DIR=$masks bash "$root/scripts/inference.sh" --overwrite

echo "quickstart: evaluation"
"$python" "$root/utils/eval_mevis.py" --mevis_exp_path "$split/meta_expressions.json" \
    --mevis_mask_path "$split/mask_dict.json" --mevis_pred_path "$masks" \
    --json "$out/scores.json" --save_name "$out/mevis_test.json" --per_frame

echo "quickstart: report"
name=$(basename "$MODEL")
"$python" -m glus report --dataset_dir "$data" --val_set mevis --set_name valid_u --runs "$name=$masks" \
    --eval_json "$out/scores.json" --out "$out/report" --title "$title" ${curves[@]+"${curves[@]}"}

"$python" - "$out/scores.json" "$out/report/report.html" <<'TEXT'
import json, sys
with open(sys.argv[1]) as handle:
    print(f"J&F {100 * json.load(handle)['J&F']:.2f}")
print(sys.argv[2])
TEXT
