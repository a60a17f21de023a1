#!/bin/bash
# nodeup.sh NODE: start one node's daemon, at the beginning or after nodekill.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lab.sh
. "$(dirname "$0")/lab.sh"
node=$1

if [[ -e $LAB/etc/namespaces ]]; then
  # shellcheck disable=SC2016  # the inner shell expands these
  exec unshare --uts --mount sh -c \
    'hostname "$1" && mount --make-rprivate / && mount -t tmpfs none /var/tmp && exec slurmd -f "$SLURM_CONF" -N "$1"' \
    sh "$node"
fi
exec slurmd -f "$SLURM_CONF" -N "$node"
