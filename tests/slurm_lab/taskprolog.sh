#!/bin/bash
# What this prints as "export NAME=value" goes into a task's environment. A generic GRES such as dcu gives a job no
# variable at all; with $LAB/etc/export-devices present the site behaves like those that patch HIP_VISIBLE_DEVICES in.
# A status other than 0 would fail the job.
[[ -e ${SLURM_CONF%/*}/export-devices ]] || exit 0

# numbers 0-1,3 -> 0,1,3
numbers() {
  local range
  for range in ${1//,/ }; do seq -s, "${range%-*}" "${range#*-}"; done | paste -sd,
}

# One line a group of nodes: "Nodes=dcu[1-2] CPU_IDs=0-1 Mem=4096 GRES=dcu:2(IDX:0-1)"
scontrol show job -d "$SLURM_JOB_ID" | sed -nE 's/^ *Nodes=([^ ]+) .*GRES=dcu:[0-9]+\(IDX:([0-9,-]+)\).*/\1 \2/p' |
  while read -r nodes indices; do
    if scontrol show hostnames "$nodes" | grep -qx "$SLURMD_NODENAME"; then
      echo "export HIP_VISIBLE_DEVICES=$(numbers "$indices")"
    fi
  done
exit 0
