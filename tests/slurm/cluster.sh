#!/usr/bin/env bash
# Run a real Slurm (Debian's slurmctld, slurmd, munge) on one machine for the tests. A sandbox of namespaces contains the
# controller and a private network. Inside it each node has its own PID, UTS, mount and network namespaces. So `hostname`
# prints node1, node2, ..., killing a node's first process is a power cut, and a network cable can be disconnected.
# Nothing outside the sandbox changes, several clusters can run at once, and ending its first process ends everything.
#
#   cluster.sh DIR start [NODES]        create the sandbox and wait until all nodes are idle (root; DIR short, < 60 letters)
#   cluster.sh DIR run COMMAND ...      run a command where sbatch, squeue, scontrol find the cluster
#   cluster.sh DIR kill-node N          power cut: the node's daemon and tasks die at once
#   cluster.sh DIR start-node N         start it again
#   cluster.sh DIR cut-node N           disconnect the node's network; heal-node N connects it again
#   cluster.sh DIR stop                 end everything and remove DIR
#
# $DIR/local is another empty folder on every node (a node's own disk); everything else is shared.
set -euo pipefail

DIR=${1:?a folder}
ACTION=${2:?start, run, kill-node, start-node, cut-node, heal-node or stop}
shift 2
SELF=$(readlink -f "$0")
SUBNET=10.231.77
PORT=6817
export SLURM_CONF=$DIR/slurm.conf PATH=$PATH:/usr/sbin:/sbin

die() { echo "cluster: $*" >&2; exit 1; }

inside() { # run this script's ACTION in the sandbox
    local init
    init=$(<"$DIR/sandbox.pid")
    # entering a mount namespace changes the working folder
    # shellcheck disable=SC2016
    nsenter --target "$init" --mount --net --pid --uts -- bash -c 'cd "$1" && shift && exec "$@"' bash "$PWD" "$@"
}

write_settings() {
    local n
    cat <<CONF
ClusterName=one
SlurmctldHost=head($SUBNET.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# the lifetime of a credential is also the delay before a requeued job may start: 121 s by default, 6 s here
AuthInfo=socket=$DIR/munge.sock,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd-%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=0
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
ReturnToService=1
SlurmctldTimeout=60
SlurmdTimeout=15
KillWait=15
UnkillableStepTimeout=60
InactiveLimit=0
MinJobAge=86400
JobRequeue=1
# declared processors need not exist
SlurmdParameters=config_overrides
CONF
    for ((n = 1; n <= $1; n++)); do
        echo "NodeName=node$n NodeAddr=$SUBNET.$((10 + n)) Port=$((PORT + 1)) CPUs=8 RealMemory=16000 State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP"
}

case $ACTION in
start)
    nodes=${1:-3}
    [[ $(id -u) == 0 ]] || die "needs root, for namespaces"
    ((${#DIR} < 60)) || die "$DIR is too long for unix sockets"
    for program in slurmctld slurmd munged sbatch unshare nsenter ip; do
        command -v $program >/dev/null || die "no $program: apt-get install slurmctld slurmd slurm-client munge iproute2"
    done
    mkdir -p "$DIR"/{state,spool,log,munge,local}
    chmod 755 "$DIR" "$DIR/log" "$DIR/spool"
    chmod 700 "$DIR/munge" "$DIR/state"
    write_settings "$nodes" >"$DIR/slurm.conf"
    # slurmd 22.05 looks for /sys/fs/cgroup even when nothing uses it; naming a plugin avoids that
    echo "CgroupPlugin=cgroup/v1" >"$DIR/cgroup.conf"
    { echo "127.0.0.1 localhost"; echo "$SUBNET.1 head"; for ((n = 1; n <= nodes; n++)); do echo "$SUBNET.$((10 + n)) node$n"; done; } >"$DIR/hosts"
    echo "$nodes" >"$DIR/nodes"
    setsid unshare --mount --net --pid --uts --fork --kill-child=SIGKILL --mount-proc \
        bash "$SELF" "$DIR" _sandbox </dev/null >"$DIR/log/sandbox.log" 2>&1 &
    outer=$!
    for _ in $(seq 100); do
        [[ -e $DIR/booted ]] && break
        kill -0 $outer 2>/dev/null || { tail -n 20 "$DIR/log/sandbox.log" >&2; die "this kernel gives no namespaces, or a daemon did not start"; }
        sleep 0.1
    done
    echo "$outer" >"$DIR/outer.pid"
    pgrep --parent "$outer" >"$DIR/sandbox.pid"
    for _ in $(seq 300); do
        idle=$(inside sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort -u | wc -l)
        ((idle >= nodes)) && exit 0
        sleep 0.1
    done
    tail -n 20 "$DIR"/log/*.log >&2
    die "nodes are not idle after 30 s"
    ;;
_sandbox)
    export CLUSTER_SANDBOX=1
    mount --make-rprivate /
    mount --bind "$DIR/hosts" /etc/hosts
    hostname head
    ip link set lo up
    ip link add cluster type bridge
    ip addr add $SUBNET.1/24 dev cluster
    ip link set cluster up
    (umask 077; head -c 1024 /dev/urandom >"$DIR/munge/key")
    munged --key-file="$DIR/munge/key" --socket="$DIR/munge.sock" --pid-file="$DIR/munged.pid" \
        --log-file="$DIR/munge/munged.log" --seed-file="$DIR/munge/seed" --num-threads=2
    (cd / && slurmctld -i)
    for ((n = 1; n <= $(<"$DIR/nodes"); n++)); do bash "$SELF" "$DIR" start-node $n; done
    touch "$DIR/booted"
    while :; do sleep 3600 & wait; done # the first process of the sandbox reaps the orphans
    ;;
start-node)
    if [[ -z ${CLUSTER_SANDBOX:-} ]]; then
        inside env CLUSTER_SANDBOX=1 bash "$SELF" "$DIR" start-node "$1"
        exit
    fi
    mkdir -p "$DIR/spool/node$1"
    rm -f "$DIR/node$1.pid" "$DIR/slurmd-node$1.pid"
    (cd /
        setsid unshare --mount --net --pid --uts --fork --kill-child=SIGKILL --mount-proc \
        bash "$SELF" "$DIR" _node "$1" </dev/null >>"$DIR/log/node$1.log" 2>&1 &
        echo $! >"$DIR/node$1.pid")
    for _ in $(seq 50); do pgrep --parent "$(<"$DIR/node$1.pid")" >/dev/null && break; sleep 0.1; done
    ip link delete "cable$1" 2>/dev/null || true # a node that was killed may not have released it yet
    ip link add "cable$1" type veth peer name eth0 netns "$(pgrep --parent "$(<"$DIR/node$1.pid")")"
    ip link set "cable$1" master cluster up
    ;;
_node)
    mount --make-rprivate /
    mount -t tmpfs local "$DIR/local"
    hostname "node$1"
    ip link set lo up
    for _ in $(seq 100); do ip link show eth0 >/dev/null 2>&1 && break; sleep 0.05; done
    ip addr add "$SUBNET.$((10 + $1))/24" dev eth0
    ip link set eth0 up
    slurmd -N "node$1" -D &
    wait $!
    while :; do sleep 3600 & wait; done
    ;;
run) inside "$@" ;;
kill-node) # the kernel ends everything in a PID namespace with its first process
    inside bash -c "kill -KILL \$(pgrep --parent \$(<'$DIR/node$1.pid')); ip link delete cable$1 2>/dev/null || true" ;;
cut-node) inside ip link set "cable$1" down ;;
heal-node) inside ip link set "cable$1" up ;;
stop)
    if [[ -s $DIR/outer.pid ]]; then kill -KILL "$(<"$DIR/sandbox.pid")" 2>/dev/null || true; fi
    for _ in $(seq 50); do rm -rf "$DIR" 2>/dev/null && exit 0; sleep 0.1; done
    rm -rf "$DIR"
    ;;
*) die "unknown action $ACTION" ;;
esac
