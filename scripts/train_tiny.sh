#!/usr/bin/env bash
# Train glus-tiny from nothing, on videos generated on the fly. A stopped run goes on when started again.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    cat <<'TEXT'
usage: [VARIABLE=value ...] bash scripts/train_tiny.sh [options of `python -m glus train`, for the last stage]

Stages (docs/tiny.md says why):
  masks, search, memory     the SAM-2 part learns to segment what a hint points at, to find it by its looks, to track
  sight, stills, language   CLIP learns to see, then the language model to tell what a sentence points at
  train                     everything together, as GLUS is trained
The first three and the next three run side by side where there are two processors. The model ends up in
OUT_DIR/train/model.

environment variables (default):
  OUT_DIR      folder for the stages (outputs/tiny)
  TOKENIZER    folder of the tokenizer (checkpoints/glus-tiny)
  STEPS_MASKS, STEPS_SEARCH, STEPS_MEMORY, STEPS_SIGHT, STEPS_STILLS, STEPS_LANGUAGE, STEPS_TRAIN
               optimizer steps of each stage (1500, 1500, 300, 3000, 2000, 5000, 3000)
  MINUTES      stop every stage in good order after this many minutes (0: no limit); the same command goes on
  VENV         environment folder (.venv of this repository)
TEXT
    exit 0
fi

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
out=${OUT_DIR:-outputs/tiny}
tokenizer=${TOKENIZER:-checkpoints/glus-tiny}
mkdir -p "$out"
# One thread per stage: two stages share the machine.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

pretrain() { # name, steps, further options
    local name=$1 steps=$2
    shift 2
    "$python" -m glus pretrain --config configs/pretrain_tiny.yaml --tokenizer "$tokenizer" --log_dir "$out/$name" \
        --steps "$steps" --max_minutes "${MINUTES:-0}" "$@" | tee "$out/$name.result"
    grep -q '"finished": true' "$out/$name.result"
}

masks() {
    pretrain masks "${STEPS_MASKS:-1500}" --side masks --looks_only 0 &&
        pretrain search "${STEPS_SEARCH:-1500}" --side masks --looks_only 0.6 --version "$out/masks/model" &&
        pretrain memory "${STEPS_MEMORY:-300}" --side masks --looks_only 0.4 --mask_frames 3 \
            --version "$out/search/model"
}

language() {
    pretrain sight "${STEPS_SIGHT:-3000}" --side sight &&
        pretrain stills "${STEPS_STILLS:-2000}" --side language --stills --batch_size 8 --version "$out/sight/model" &&
        pretrain language "${STEPS_LANGUAGE:-5000}" --side language --version "$out/stills/model"
}

status=0
if [[ $(nproc) -gt 1 ]]; then
    masks &
    language || status=$?
    wait $! || status=$?
else
    masks && language || status=$?
fi
if ((status)); then
    echo "pretraining has not finished; run the same command again to go on" >&2
    exit "$status"
fi
"$python" -m glus pretrain --join_sides "$out/language/model" "$out/memory/model" --log_dir "$out/joined"
"$python" -m glus train --config configs/train_tiny.yaml --version "$out/joined/model" --log_base_dir "$out" \
    --exp_name train --steps "${STEPS_TRAIN:-3000}" --max_minutes "${MINUTES:-0}" "$@"
