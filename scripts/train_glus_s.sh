#!/usr/bin/env bash
# Train GLUS-S: the recipe in configs/train_glus_s.yaml. Everything else is as in scripts/train.sh.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    echo "usage: [VARIABLE=value ...] bash scripts/train_glus_s.sh [options]"
    echo "CONFIG is configs/train_glus_s.yaml and EXP_NAME glus_s; everything else is as in scripts/train.sh:"
    echo
    exec bash "$here/train.sh" --help
fi
CONFIG=${CONFIG:-$here/../configs/train_glus_s.yaml} EXP_NAME=${EXP_NAME:-glus_s} exec bash "$here/train.sh" "$@"
