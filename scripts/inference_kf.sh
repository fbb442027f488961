#!/usr/bin/env bash
# As scripts/inference.sh, starting each expression from its key frame: forward, then backward.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    echo "usage: SCORE_JSON=key_frames.json [VARIABLE=value ...] bash scripts/inference_kf.sh [options]"
    echo "SCORE_JSON is required here; everything else is as in scripts/inference.sh:"
    echo
    exec bash "$here/inference.sh" --help
fi
if [[ -z ${SCORE_JSON:-} ]]; then
    echo "error: set SCORE_JSON to the key-frame file, {\"<video>_<exp_id>\": frame name}" >&2
    exit 2
fi
SAVE_DIR=${SAVE_DIR:-${OUT_DIR:-outputs}/${VAL_SET:-mevis}_${SET_NAME:-valid_u}_kf} exec bash "$here/inference.sh" "$@"
