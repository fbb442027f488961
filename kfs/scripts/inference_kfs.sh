#!/usr/bin/env bash
# Score every frame of a data set by a key-frame selector: scores and key_frames.json in SAVE_DIR. A stopped run
# continues when started again.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    cat <<'TEXT'
usage: [VARIABLE=value ...] bash kfs/scripts/inference_kfs.sh [options of `python -m kfs score`]

environment variables (default):
  MODEL       selector: folder or hub id ($CKPT_DIR/kfs-tiny; CKPT_DIR: checkpoints of this repository)
  DATA_DIR    folder that holds mevis, Refer-YouTube-VOS, ... (data)
  VAL_SET     mevis, refyoutube_vos, davis17, revos or reasonvos (mevis)
  SET_NAME    split (valid_u)
  SAVE_DIR    output folder ($OUT_DIR/<VAL_SET>_<SET_NAME>_scores; OUT_DIR: outputs)
  NUM_GPUS    GPUs to use (all); 0: none
  WORKERS     processes on the CPU (1)
  VENV        environment folder (.venv of this repository)

Then start GLUS from the key frames:
  SCORE_JSON=$SAVE_DIR/key_frames.json bash scripts/inference_kf.sh

Several machines: as scripts/inference.sh (docs/inference.md). Options pass through; all of them:
  python -m kfs score --help
TEXT
    exit 0
fi

source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/environment.sh"
source "$root/scripts/launch_inference.sh"
infer kfs score kfs-tiny _scores "$@"
