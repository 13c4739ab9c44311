#!/usr/bin/env bash
# Runs a command on a node, a rank or a launcher of ranks, and hands SIGUSR1 to the ranks below it. A launcher would die
# of the signal (torchrun, deepspeed) or keep it from its ranks; a rank that is still loading would die of it, too.
set -u
trap '' USR1 # inherited: whoever wants the signal installs a handler of their own
"$@" &
child=$!

ranks() { # the first processes below $1 that a launcher gave a place among the ranks; $1 itself where srun did
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
