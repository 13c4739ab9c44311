# shellcheck shell=bash
# Functions of the batch scripts: rendezvous, environment, one of three launchers, signals, requeue. A batch script sources
# this file on the job's first node and calls run_stage, run_evaluation or run_doctor. docs/slurm.md lists the variables.
set -uo pipefail

repository=${MINIGPTV2_HOME:-${SLURM_SUBMIT_DIR:?not in a Slurm job}}
cd "$repository" || exit 1
python=${MINIGPTV2_PYTHON:-$repository/.venv/bin/python}
launcher=${LAUNCHER:-srun}
tasks_per_node=${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
config_code=2     # ExitCode.CONFIG
asked=            # set once a signal has asked this job to stop
worker=           # process id of the launcher in the background

say() { echo "$(date '+%F %T') ${SLURM_JOB_NAME:-job} ${SLURM_JOB_ID:-}.${SLURM_RESTART_COUNT:-0}: $*"; }

minigptv2() { "$python" -m minigptv2 "$@"; }

# Set the full environment of every rank, so that a job submitted with --export=NONE runs the same.
prepare_environment() {
    unset SLURM_EXPORT_ENV # otherwise srun passes on nothing after sbatch --export=NONE
    export PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export MASTER_ADDR=${nodes[0]}
    MASTER_PORT=$(minigptv2 slurm port) || exit 1
    export MASTER_PORT
    export MINIGPTV2_START=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} # identifies this start in failure.json
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
    say "${#nodes[@]} node(s) x $tasks_per_node rank(s), $launcher, rendezvous at $MASTER_ADDR:$MASTER_PORT"
}

# Start `program arguments ...` in every rank, in the background. Leaves the launcher's process id in `worker`.
start_ranks() {
    local logs=$1
    shift
    local step=(srun --export=ALL --kill-on-bad-exit=1 --nodes="${#nodes[@]}" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
    case $launcher in
    srun) # one task per rank, numbered by Slurm's own variables
        "${step[@]}" --ntasks-per-node="$tasks_per_node" --output="$logs/rank-%t.log" --error="$logs/rank-%t.log" \
            bash -c 'trap "" USR1; exec "$@"' rank "$python" "$@" 2>"$logs/launcher.log" & # see on_node.sh
        ;;
    torchrun) # one launcher per node
        "${step[@]}" --ntasks-per-node=1 --cpus-per-task="$((tasks_per_node * ${SLURM_CPUS_PER_TASK:-1}))" \
            --output="$logs/node-%n.log" --error="$logs/node-%n.log" \
            bash launch/slurm/on_node.sh "$python" -m torch.distributed.run --nnodes="${#nodes[@]}" \
            --nproc-per-node="$tasks_per_node" --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" \
            --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" --max-restarts=0 --log-dir="$logs/torchrun" \
            --redirects=3 --tee=3 "$@" 2>"$logs/launcher.log" &
        ;;
    deepspeed) # pdsh with srun in place of ssh: the nodes need no keys, and Slurm knows every process
        local name
        command -v pdsh >/dev/null || { say "LAUNCHER=deepspeed needs pdsh on the nodes"; exit "$config_code"; }
        : >"$logs/hostfile"
        for name in "${nodes[@]}"; do echo "$name slots=$tasks_per_node" >>"$logs/hostfile"; done
        PATH=$repository/launch/slurm/srun_as_ssh:$PATH "$(dirname "$python")/deepspeed" --hostfile="$logs/hostfile" --force_multi --launcher=pdsh \
            --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" \
            --enable_each_rank_log="$logs/deepspeed" "$@" >"$logs/launcher.log" 2>&1 &
        ;;
    *) say "LAUNCHER must be srun, torchrun or deepspeed, got $launcher"; exit "$config_code" ;;
    esac
    worker=$!
}

# Slurm sends the warning before the time limit to this shell only. The ranks agree on the step after which they stop.
forward_signal() {
    asked=--asked
    say "USR1: the ranks save and exit"
    if [[ $launcher == deepspeed ]]; then scancel --signal=USR1 "$SLURM_JOB_ID"; else kill -USR1 "$worker"; fi
}

# Cancelled, preempted, or requeued from outside: Slurm has sent the ranks their own SIGTERM, and decides what follows.
note_termination() {
    asked=--asked
    terminated=1
    say "TERM: waiting for the ranks to save and exit"
}

wait_for_ranks() { # a trap interrupts `wait`, so repeat it until the process has ended
    terminated=
    trap forward_signal USR1
    trap note_termination TERM
    while :; do
        wait "$worker"
        code=$?
        kill -0 "$worker" 2>/dev/null || break
    done
    trap '' USR1 TERM
}

# Requeue this job without the given nodes. Slurm ends this script soon after. Until then it continues.
requeue() {
    trap '' TERM
    scontrol requeue "$SLURM_JOB_ID" || { say "cannot be requeued; submit it again"; return 1; }
    if [[ -n ${1:-} ]]; then # can be changed only while the job is pending, which is now
        scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$1" && say "excluded from now on: $1"
    fi
    say "requeued"
}

# run_stage CONFIG key=value ...: train one stage. Resumes where an earlier start of this job stopped.
run_stage() {
    local config=$1 verdict word rest logs
    shift
    verdict=$(minigptv2 slurm begin "$config" "$@") || exit 1
    read -r word rest <<<"$verdict"
    case $word in
    go) logs=$rest ;;
    done) exit 0 ;;
    move) requeue "$rest"; exit ;;
    *) exit 1 ;;
    esac
    prepare_environment
    say "one log per rank: $logs"
    start_ranks "$logs" launch/train.py --config "$config" "$@"
    wait_for_ranks
    [[ -s $logs/launcher.log ]] && tail -n 20 "$logs/launcher.log"
    # shellcheck disable=SC2086 # asked is one word or none
    verdict=$(minigptv2 slurm end "$config" "$@" --code "$code" $asked --launcher-errors "$logs/launcher.log" \
        --rank-logs "$logs") || exit 1
    read -r word rest <<<"$verdict"
    if [[ $word == again && -n $terminated ]]; then
        say "exit code $code: cancelled or requeued from outside, so it is not requeued here"
        exit "$((code ? code : 1))"
    fi
    say "exit code $code: $word $rest"
    case $word in
    done) exit 0 ;;
    again) requeue "$rest" ;;
    esac
    exit "$((code ? code : 1))"
}

# run_doctor ARGUMENT ...: check whether these nodes can train together. Exits with a code other than 0 if not.
run_doctor() {
    local logs=${MINIGPTV2_LOGS:-runs/doctor}/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
    mkdir -p "$logs"
    prepare_environment
    start_ranks "$logs" -m minigptv2 doctor --nodes "$@"
    wait_for_ranks
    cat "$logs/launcher.log" "$logs"/rank-*.log "$logs"/node-*.log 2>/dev/null
    exit "$code"
}

# run_evaluation ARGUMENT ...: launch/evaluate.py in every rank. Its ranks share the work and rank 0 writes the report.
run_evaluation() {
    local logs=${MINIGPTV2_LOGS:-runs/evaluate}/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
    mkdir -p "$logs"
    prepare_environment
    start_ranks "$logs" launch/evaluate.py "$@"
    wait_for_ranks
    cat "$logs/launcher.log" 2>/dev/null
    exit "$code"
}
