#!/usr/bin/env bash
# Run a data set through GLUS: masks and summary.json in SAVE_DIR. A stopped run continues when started again.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    cat <<'TEXT'
usage: [VARIABLE=value ...] bash scripts/inference.sh [options of `python -m glus infer`]

environment variables (default):
  MODEL       checkpoint folder or hub id ($CKPT_DIR/glus-tiny; CKPT_DIR: checkpoints of this repository)
  DATA_DIR    folder that holds mevis, Refer-YouTube-VOS, ... (data)
  VAL_SET     mevis, refyoutube_vos, davis17, revos or reasonvos (mevis)
  SET_NAME    split (valid_u)
  SAVE_DIR    output folder ($OUT_DIR/<VAL_SET>_<SET_NAME>; OUT_DIR: outputs)
  SCORE_JSON  key frames {<video>_<exp_id>: frame name}; start from them (none)
  NUM_GPUS    GPUs to use (all); 0: none
  WORKERS     processes on the CPU (1)
  VENV        environment folder (.venv of this repository)

Several machines, one process each, SAVE_DIR shared (docs/inference.md):
  torchrun --nnodes N --nproc-per-node 1 --node-rank R --master-addr A --no-python bash scripts/inference.sh
  srun --nodes N --ntasks-per-node 1 --gpus-per-node G bash scripts/inference.sh
  RANK=R WORLD_SIZE=N bash scripts/inference.sh

`bash scripts/inference.sh --workers 1 --precision fp32` and the like pass through; all options:
  python -m glus infer --help
TEXT
    exit 0
fi

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$root/scripts/launch_inference.sh"
key_frames=()
if [[ -n ${SCORE_JSON:-} ]]; then key_frames=(--use_kf --score_json "$SCORE_JSON"); fi
infer glus infer glus-tiny "" ${key_frames[@]+"${key_frames[@]}"} "$@"
