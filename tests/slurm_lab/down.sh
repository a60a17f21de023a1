#!/bin/bash
# Take the cluster of $LAB down and remove the folder. Ends only what up.sh and the cluster's jobs started.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lab.sh
. "$(dirname "$0")/lab.sh"
trap '' PIPE # munge hangs up on a client that a busy machine leaves waiting; it tries again if it lives

cancel_jobs() {
  local jobs
  jobs=$(timeout 60 squeue -h -o %A | sort -u)
  [[ -n $jobs ]] || return 0
  # shellcheck disable=SC2086  # one argument a job
  scancel $jobs && wait_for 20 queue_is_empty
}

queue_is_empty() { [[ -z $(squeue -h) ]]; }

# stop DAEMON...: ask all of them to end, then make sure
stop() {
  local name pid
  for name in "$@"; do
    if pid=$(pid_of "$name"); then kill -TERM "$pid" 2>/dev/null || true; fi
  done
  for name in "$@"; do
    pid=$(pid_of "$name") || continue
    wait_for 30 is_gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
  done
}

is_gone() { ! is_alive "$1"; }

kill_strays() {
  local pid
  for pid in $(step_daemons "${nodes[@]}" && job_processes "${nodes[@]}"); do
    kill -KILL "$pid" 2>/dev/null || true
  done
}

mapfile -t nodes < <(cd "$LAB/spool" 2>/dev/null && ls)
if pid_of slurmctld >/dev/null; then cancel_jobs || true; fi
stop "${nodes[@]/#/slurmd-}"
stop slurmctld slurmdbd
stop mariadbd munged
kill_strays
rm -rf "$LAB"
