#!/usr/bin/env bash
# A training checkpoint becomes a model one can load; needs no GPU.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    cat <<'TEXT'
usage: [VARIABLE=value ...] bash scripts/merge.sh [options of `python -m glus merge`]

environment variables (default):
  EXP_NAME   name of the run (glus_s)
  OUT_DIR    folder of the runs (outputs)
  WEIGHT     log folder of the run, or one of its checkpoints/step-... (OUT_DIR/EXP_NAME)
  LAYOUT     ours, or released: as GLUS was published, for other tools (ours)
  SAVE_PATH  folder for the model (OUT_DIR/EXP_NAME/model, or .../model_released)
  VENV       environment folder (.venv of this repository)

`bash scripts/merge.sh --best --precision fp32` and the like pass through; all options:
  python -m glus merge --help
TEXT
    exit 0
fi

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
run=${OUT_DIR:-outputs}/${EXP_NAME:-glus_s}
layout=${LAYOUT:-ours}
model=$run/model
if [[ $layout == released ]]; then model+=_released; fi
exec "$python" -m glus merge --weight "${WEIGHT:-$run}" --save_path "${SAVE_PATH:-$model}" \
    --layout "$layout" "$@"
