#!/usr/bin/env bash
# Train GLUS-A: the recipe in configs/train_glus_a.yaml. Everything else is as in scripts/train.sh.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    echo "usage: [VARIABLE=value ...] bash scripts/train_glus_a.sh [options]"
    echo "CONFIG is configs/train_glus_a.yaml and EXP_NAME glus_a; everything else is as in scripts/train.sh:"
    echo
    exec bash "$here/train.sh" --help
fi
CONFIG=${CONFIG:-$here/../configs/train_glus_a.yaml} EXP_NAME=${EXP_NAME:-glus_a} exec bash "$here/train.sh" "$@"
