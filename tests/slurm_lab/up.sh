#!/bin/bash
# Bring a private Slurm cluster up: plain processes of this user, with no systemd, no /etc and no cgroups.
#   LAB=folder           where all of it lies; short, since sockets below it must fit in 108 characters
#   PORT=20000           the first of 8 + DCU_NODES free ports
#   ACCOUNTING=1         mariadbd and slurmdbd too, so that sacct answers
#   ENFORCE=             what accounting insists on, such as wckeys; this user has an account then
#   DCU_NODES=4          nodes dcu1... of partition kshdtest, 32 cores and 4 cards each; partition gpu is one node, gpu1
#   NODE_NAMESPACES=0    1 (root): a node has its own host name, and a /var/tmp that no other node sees
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lab.sh
. "$(dirname "$0")/lab.sh"
: "${PORT:?must be the first of a block of free ports}"
ACCOUNTING=${ACCOUNTING:-1} DCU_NODES=${DCU_NODES:-4} NODE_NAMESPACES=${NODE_NAMESPACES:-0} ENFORCE=${ENFORCE:-}
HERE=$(cd "$(dirname "$0")" && pwd)
HOST=$(hostname -s) ME=$(id -un)
CONTROLLER_PORT=$((PORT + 1)) DBD_PORT=$((PORT + 2)) SQL_PORT=$((PORT + 3)) GPU_PORT=$((PORT + 4)) DCU_PORT=$((PORT + 5))

make_folders() {
  umask 022
  mkdir -p "$LAB"/{db,dev,etc,log,pid,sock,spool,state}
  (umask 077 && head -c 128 /dev/urandom >"$LAB/etc/munge.key")
  local card
  for card in {dcu,gpu}-{0..3}; do # gres/gpu insists on character devices; a link to one needs no root
    ln -s /dev/null "$LAB/dev/$card"
  done
  install -m 755 "$HERE/taskprolog.sh" "$LAB/etc/" # slurmstepd insists on the permission
  if [[ $NODE_NAMESPACES == 1 ]]; then : >"$LAB/etc/namespaces"; fi
}

start_munge() {
  munged --key-file="$LAB/etc/munge.key" --socket="$LAB/sock/munge" --pid-file="$LAB/pid/munged.pid" \
    --log-file="$LAB/log/munged.log" --seed-file="$LAB/etc/munge.seed" --num-threads=4
  wait_for 300 munge -S "$LAB/sock/munge" -n || die "munged did not come up, see $LAB/log"
}

# Waits that a test would feel are short here: scheduling, requeueing, the end of a cancelled job. Waits that a busy
# machine could fall foul of are long.
write_slurm_conf() {
  local every_node="NodeHostname=$HOST NodeAddr=127.0.0.1 Boards=1 CoresPerSocket=16 ThreadsPerCore=1 State=UNKNOWN"
  cat <<END
ClusterName=lab
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
AuthInfo=socket=$LAB/sock/munge,cred_expire=20
CredType=cred/munge
SlurmctldPort=$CONTROLLER_PORT
SlurmctldPidFile=$LAB/pid/slurmctld.pid
SlurmdPidFile=$LAB/pid/slurmd-%n.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd-%n.log
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
TaskProlog=$LAB/etc/taskprolog.sh
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
GresTypes=dcu,gpu
DefMemPerCPU=2048
ReturnToService=2
KillWait=5
MessageTimeout=100
BatchStartTimeout=300
SlurmdTimeout=30
InactiveLimit=0
JobRequeue=1
NodeName=dcu[1-$DCU_NODES] Port=[$DCU_PORT-$((DCU_PORT + DCU_NODES - 1))] CPUs=32 SocketsPerBoard=2 RealMemory=120000 \
Gres=dcu:4 $every_node
NodeName=gpu1 Port=$GPU_PORT CPUs=16 SocketsPerBoard=1 RealMemory=60000 \
Gres=gpu:4 $every_node
PartitionName=kshdtest Nodes=dcu[1-$DCU_NODES] Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=gpu1 MaxTime=INFINITE State=UP
END
  if [[ $ACCOUNTING == 1 ]]; then
    cat <<END
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$DBD_PORT
AccountingStoragePass=$LAB/sock/munge
AccountingStorageTRES=gres/dcu,gres/gpu
AccountingStoreFlags=job_comment,job_script,job_env
${ENFORCE:+AccountingStorageEnforce=$ENFORCE
TrackWCKey=yes}
END
  else
    cat <<END
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
END
  fi
}

write_gres_conf() {
  cat <<END
NodeName=dcu[1-$DCU_NODES] Name=dcu File=$LAB/dev/dcu-[0-3]
NodeName=gpu1 Name=gpu Flags=nvidia_gpu_env File=$LAB/dev/gpu-[0-3]
END
}

write_my_cnf() {
  cat <<END
[mariadbd]
user=$ME
datadir=$LAB/db
socket=$LAB/sock/mysql
pid-file=$LAB/pid/mariadbd.pid
log-error=$LAB/log/mariadbd.log
bind-address=127.0.0.1
port=$SQL_PORT
skip-log-bin
skip-name-resolve
performance_schema=OFF
innodb_buffer_pool_size=64M
innodb_log_file_size=16M
innodb_lock_wait_timeout=900
innodb_flush_log_at_trx_commit=0
END
}

write_slurmdbd_conf() {
  cat <<END
AuthType=auth/munge
AuthInfo=socket=$LAB/sock/munge
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$DBD_PORT
SlurmUser=$ME
LogFile=$LAB/log/slurmdbd.log
PidFile=$LAB/pid/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$SQL_PORT
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
${ENFORCE:+TrackWCKey=yes}
END
}

start_accounting() {
  local sql=(--no-defaults -u root -S "$LAB/sock/mysql")
  write_my_cnf >"$LAB/etc/my.cnf"
  (umask 077 && write_slurmdbd_conf >"$LAB/etc/slurmdbd.conf") # slurmdbd refuses a file that others may read
  mariadb-install-db --defaults-file="$LAB/etc/my.cnf" --user="$ME" --datadir="$LAB/db" \
    --auth-root-authentication-method=normal --skip-test-db >"$LAB/log/mariadb-install.log" 2>&1 ||
    die "mariadb-install-db failed, see $LAB/log/mariadb-install.log"
  mariadbd --defaults-file="$LAB/etc/my.cnf" </dev/null >/dev/null 2>&1 &
  wait_for 300 mariadb-admin "${sql[@]}" ping || die "mariadbd did not come up, see $LAB/log"
  mariadb "${sql[@]}" -e "create database slurm; grant all on slurm.* to slurm@'%' identified by 'slurm'"
  slurmdbd
  wait_for 300 sacctmgr -n list cluster || die "slurmdbd did not come up, see $LAB/log"
}

nodes_are_idle() {
  [[ $(sinfo -h -N -o %T | grep -c '^idle$') == $((DCU_NODES + 1)) ]]
}

start_controller() {
  slurmctld -f "$SLURM_CONF"
  wait_for 300 controller_is_up || die "slurmctld did not come up, see $LAB/log"
}

add_user() {
  sacctmgr -i add account lab >/dev/null || true # there since the last attempt
  sacctmgr -i add user "$ME" account=lab >/dev/null
}

start_nodes() {
  local number
  for ((number = 1; number <= DCU_NODES; number++)); do
    bash "$HERE/nodeup.sh" "dcu$number"
  done
  bash "$HERE/nodeup.sh" gpu1
  wait_for 300 nodes_are_idle || die "the nodes did not come up, see $LAB/log"
}

[[ ! -e $SLURM_CONF ]] || die "$LAB holds a cluster already: take it down first"
make_folders
write_slurm_conf >"$SLURM_CONF"
write_gres_conf >"$LAB/etc/gres.conf"
start_munge
if [[ $ACCOUNTING == 1 ]]; then start_accounting; fi
start_controller
if [[ -n $ENFORCE ]]; then wait_for 60 add_user || die "no account for $ME, see $LAB/log"; fi
start_nodes
