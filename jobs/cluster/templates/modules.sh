# shellcheck shell=bash
# List every module, one a line, or nothing where there are none.
# shellcheck disable=SC1091  # it stands beside this file
. "$(dirname "$0")/find_module.sh"
if command -v module > /dev/null; then
  module -t avail 2>&1
fi
exit 0
