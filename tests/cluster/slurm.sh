#!/usr/bin/env bash
# A Slurm of one node on loopback, from Debian's packages, with everything it writes under one folder.
#   slurm.sh up     install what is missing (as root, with apt), start it, wait until a job ran; prints SLURM_CONF
#   slurm.sh down   stop the daemons that `up` started and remove the folder
# No accounting database: nothing here may need one. Partitions: main; low, whose jobs one in high pushes out.
set -euo pipefail

folder=${FSAE_SLURM_FOLDER:-/tmp/fsae-slurm}
host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf

until_true() {
    for ((tenth = 0; tenth < 200; tenth++)); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    echo "waited 20 s for: $*" >&2
    tail -n 20 "$folder"/*.log >&2
    return 1
}

gone() { ! kill -0 "$1" 2>/dev/null; }

down() {
    for daemon in slurmd slurmctld munged; do
        [ -s "$folder/$daemon.pid" ] || continue
        pid=$(cat "$folder/$daemon.pid")
        kill "$pid" 2>/dev/null || continue
        until_true gone "$pid" || kill -KILL "$pid"
    done
    rm -rf "$folder"
}

up() {
    missing=()
    for package in slurmctld slurmd slurm-client munge; do
        dpkg -s "$package" 2>/dev/null | grep -q '^Status: install ok installed' || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
    # The daemons listen where the host's name points to.
    getent ahostsv4 "$host" | grep -q '^127\.' || echo "127.0.0.1 $host" >>/etc/hosts

    down
    mkdir -p "$folder/state" "$folder/spool"
    chmod 755 "$folder"
    configure
    head -c 128 /dev/urandom >"$folder/munge.key"
    chmod 600 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    until_true munge --no-input --socket="$folder/munge.socket"
    slurmctld
    until_true scontrol ping
    slurmd -N node
    until_true srun --partition=main --time=1 --immediate=5 true
    echo "SLURM_CONF=$SLURM_CONF"
}

configure() {
    cat >"$SLURM_CONF" <<END
ClusterName=fsae
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credential has expired: 120 s unless told otherwise.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
# There may be fewer cores than are promised.
SlurmdParameters=config_overrides
# Neither control groups nor systemd.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=5
# What is pushed out is told so by the signal it asked for, as it is before a time limit.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/none
NodeName=node NodeHostname=$host NodeAddr=127.0.0.1 Port=16818 CPUs=4 State=UNKNOWN
PartitionName=main Nodes=node Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=node MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=node MaxTime=INFINITE State=UP PriorityTier=20 PreemptMode=OFF
END
    # Slurm reads it although it is not used.
    echo "CgroupPlugin=cgroup/v1" >"$folder/cgroup.conf"
}

case "${1:-}" in
    up) up ;;
    down) down ;;
    *) sed -n '2,5p' "$0" >&2 && exit 2 ;;
esac
