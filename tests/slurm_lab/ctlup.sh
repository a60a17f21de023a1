#!/bin/bash
# ctlup.sh: start the controller again after it has crashed, as a site's service manager does.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lab.sh
. "$(dirname "$0")/lab.sh"
slurmctld -f "$SLURM_CONF"
wait_for 60 controller_is_up || die "slurmctld did not come up again, see $LAB/log"
