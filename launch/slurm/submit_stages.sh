#!/usr/bin/env bash
# Submit the three stages, each to start when the previous one has finished. `make slurm-stages` runs this.
#
#   [DRY_RUN=1] [TOY=1] [NODES=1] [GPUS=8] [CPUS_PER_TASK=8] [TIME=24:00:00] [LAUNCHER=srun] [SBATCH_OPTIONS="..."] \
#       launch/slurm/submit_stages.sh [key=value ...]
#
# The words override keys of every stage's YAML. TOY=1 trains on the toy data on CPUs, where GPUS is processes per node.
# DRY_RUN=1 checks the configs as a real submission does, and prints what would be submitted.
set -euo pipefail
cd "$(dirname "$0")/../.."

toy=${TOY:-}
if [[ -n $toy ]]; then ranks=${GPUS:-1} cpus=${CPUS_PER_TASK:-1}; else ranks=${GPUS:-8} cpus=${CPUS_PER_TASK:-8}; fi
nodes=${NODES:-1}
python=${MINIGPTV2_PYTHON:-$PWD/.venv/bin/python}
export MINIGPTV2_HOME=$PWD MINIGPTV2_PYTHON=$python
if [[ -n $toy ]]; then
    export DS_ACCELERATOR=cpu DEMO_DIR=${DEMO_DIR:-runs/slurm-toy}
    configs=(launch/configs/toy_stage{1,2,3}.yaml)
else
    configs=(launch/configs/stage{1_pretrain,2_multitask,3_instruct}.yaml)
fi

for config in "${configs[@]}"; do # report an invalid config now and not after hours in a queue
    problem=$("$python" -m minigptv2 config "$config" "$@" --world-size "$((nodes * ranks))" 2>&1) ||
        { tail -n 1 <<<"$problem" >&2; exit 2; }
done

# Pass on only the variables that a run needs, not the rest of this shell's environment.
names=$(compgen -e | grep -E "^(HOME|USER|PATH|LANG|LD_LIBRARY_PATH|CUDA_HOME|LAUNCHER|DEMO_DIR|OMP_NUM_THREADS|https?_proxy|\
no_proxy|(MINIGPTV2|DS|NCCL|GLOO|UCX|FI|HF|TORCH|PYTORCH)_.*|PYTHON[A-Z]*)$" | paste -sd,)
common=(--parsable --export="$names,CONFIG" --output="runs/slurm/%x-%j.log")
# shellcheck disable=SC2206 # words are wanted
common+=(${SBATCH_OPTIONS:-})
stage=(--nodes="$nodes" --ntasks-per-node="$ranks" --cpus-per-task="$cpus" --gpus-per-node="$([[ -n $toy ]] && echo 0 || echo "$ranks")")
[[ -n ${TIME:-} ]] && stage+=(--time="$TIME")

submit() { # submit TITLE SBATCH-WORDS: the next one starts after this one
    local title=$1
    shift
    set -- "${common[@]}" "${after[@]}" "$@"
    if [[ -n ${DRY_RUN:-} ]]; then
        printf 'CONFIG=%s sbatch' "$CONFIG"
        printf ' %s' "${@@Q}"
        echo
        job="JOB-OF-${title// /-}"
    else
        job=$(sbatch "$@")
        job=${job%%;*}
        echo "$title: job $job, log runs/slurm/*-$job.log"
    fi
    after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
}

[[ -n ${DRY_RUN:-} ]] || mkdir -p runs/slurm
after=()
export CONFIG=
[[ -z $toy ]] || submit "toy data" launch/slurm/toy_data.sbatch ${QUICK:+--quick}
for number in 1 2 3; do
    CONFIG=${configs[number - 1]}
    submit "stage $number" "${stage[@]}" "launch/slurm/stage$number.sbatch" "$@"
done
