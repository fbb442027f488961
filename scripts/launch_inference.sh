# Sourced by the inference scripts after environment.sh: `infer MODULE COMMAND CHECKPOINT SUFFIX OPTIONS...` becomes
# `python -m MODULE COMMAND` with what the environment variables say of model, data, places and workers; CHECKPOINT is
# the folder below CKPT_DIR that MODEL defaults to, SUFFIX ends the default SAVE_DIR.
infer() {
    local module=$1 command=$2 checkpoint=$3 suffix=$4
    shift 4
    local set=${VAL_SET:-mevis} split=${SET_NAME:-valid_u}
    local arguments=(
        --version "${MODEL:-${CKPT_DIR:-$root/checkpoints}/$checkpoint}"
        --dataset_dir "${DATA_DIR:-data}"
        --val_set "$set"
        --set_name "$split"
        --vis_save_path "${SAVE_DIR:-${OUT_DIR:-outputs}/${set}_$split$suffix}"
    )
    if [[ ${NUM_GPUS:-} == 0 ]]; then arguments+=(--device cpu); fi
    if [[ -n ${WORKERS:-} ]]; then
        arguments+=(--workers "$WORKERS")
    elif [[ ${NUM_GPUS:-0} != 0 ]]; then
        arguments+=(--device cuda --workers "$NUM_GPUS")
    fi
    exec "$python" -m "$module" "$command" "${arguments[@]}" "$@"
}
