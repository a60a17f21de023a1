#!/bin/bash
# nodekill.sh NODE          crash a node: its daemon, its step daemons and its jobs' processes die at once, unsaid
# nodekill.sh NODE daemon   only its daemon dies; the jobs' processes live on, though Slurm will think that they do not
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lab.sh
. "$(dirname "$0")/lab.sh"
node=$1 what=${2:-node}

daemon=$(pid_of "slurmd-$node") || die "$node is not up"
doomed=("$daemon")
if [[ $what == node ]]; then
  mapfile -t -O 1 doomed < <(step_daemons "$node" && job_processes "$node")
  rm -rf "${LAB:?}/spool/$node"
fi
kill -KILL "${doomed[@]}" 2>/dev/null || true # some end by themselves once the first is gone
rm -f "$LAB/pid/slurmd-$node.pid"
