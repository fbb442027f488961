# Sourced by the training scripts after environment.sh: `launch MODULE OPTIONS...` becomes `python -m MODULE train
# OPTIONS...`, on NUM_GPUS GPUs of each node of HOSTFILE, of this node, under srun, or on the CPU.
launch() {
    local module=$1 gpus=${NUM_GPUS:-}
    shift
    if [[ -z $gpus && -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        gpus=$(awk -F, '{ print NF }' <<<"$CUDA_VISIBLE_DEVICES")
    elif [[ -z $gpus ]]; then
        gpus=$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)
    fi
    if [[ ! $gpus =~ ^[0-9]+$ ]]; then
        echo "error: NUM_GPUS must be a number, found '$gpus'" >&2
        exit 2
    fi

    local launcher
    if [[ -n ${HOSTFILE:-} ]]; then
        if [[ ! -f $HOSTFILE ]]; then echo "error: no HOSTFILE at $HOSTFILE" >&2 && exit 2; fi
        launcher=("$python" -m deepspeed.launcher.runner --hostfile "$HOSTFILE" --no_local_rank --module "$module")
        if [[ -n ${NUM_GPUS:-} ]]; then launcher=("${launcher[@]:0:5}" --num_gpus "$gpus" "${launcher[@]:5}"); fi
    elif [[ ${SLURM_STEP_NUM_TASKS:-1} -gt 1 ]] || ((gpus < 2)); then
        if [[ $gpus == 0 ]]; then export CUDA_VISIBLE_DEVICES=; fi
        launcher=("$python" -m "$module")
    else
        launcher=("$python" -m torch.distributed.run --standalone --nproc_per_node "$gpus" -m "$module")
    fi
    exec "${launcher[@]}" train "$@"
}
