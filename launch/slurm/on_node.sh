#!/usr/bin/env bash
# Run a command on a node (a rank or a launcher of ranks) and forward SIGUSR1 to the ranks below it. The signal would end
# a launcher (torchrun, deepspeed) or not reach its ranks, and it would also end a rank that is still loading.
set -u
trap '' USR1 # inherited: a process that uses the signal installs its own handler
"$@" &
child=$!

ranks() { # the first processes below $1 that a launcher gave a rank, or $1 itself if srun did
    local below
    for below in $(pgrep --parent "$1"); do
        if tr '\0' '\n' <"/proc/$below/environ" 2>/dev/null | grep -q '^LOCAL_RANK='; then echo "$below"; else ranks "$below"; fi
    done
}

forward() {
    local found
    mapfile -t found < <(ranks "$child")
    kill -USR1 "${found[@]:-$child}" 2>/dev/null
}

trap forward USR1
trap 'kill -TERM "$child" 2>/dev/null' TERM
while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || exit "$code"
done
