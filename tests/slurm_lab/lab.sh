# shellcheck shell=bash
# What the scripts beside this file share. $LAB is the folder of one cluster, and all of the cluster lies in it.
: "${LAB:?must name the folder of the cluster}"
export SLURM_CONF=$LAB/etc/slurm.conf

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# A daemon that has ended may stay a zombie where process 1 reaps late, so its state counts and not its number.
is_alive() {
  local state
  state=$(ps -o stat= -p "$1") && [[ $state != Z* ]]
}

# pid_of DAEMON: its process, if it lives
pid_of() {
  local pid
  pid=$(cat "$LAB/pid/$1.pid" 2>/dev/null) && [[ -n $pid ]] && is_alive "$pid" && echo "$pid"
}

# wait_for SECONDS COMMAND...: poll until the command succeeds
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.05
  done
}

controller_is_up() { scontrol ping | grep -q "is UP"; }

# step_daemons NODE...: what holds a node's log open, the node's own daemon apart
step_daemons() {
  local node pid
  for node in "$@"; do
    find /proc/[0-9]*/fd -lname "$LAB/log/slurmd-$node.log" 2>/dev/null
  done | cut -d/ -f3 | sort -u | while read -r pid; do
    [[ $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") == slurmstepd:* ]] && echo "$pid"
  done
  return 0
}

# job_processes NODE...: what jobs started on these nodes, known by the environment that Slurm gave it
job_processes() {
  (($#)) || return 0
  { grep -lzxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ 2>/dev/null || true; } | # some end while grep reads
    { xargs -r grep -lzxF "${@/#/-eSLURMD_NODENAME=}" 2>/dev/null || true; } | cut -d/ -f3
}
