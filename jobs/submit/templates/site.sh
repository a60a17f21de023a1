# shellcheck shell=bash
# Before the lines of the site: what they may rely on. They are not written for `set -u`, so it is not set here.
# A line that fails ends the job. ERR knows which it was; only EXIT sees a `source` of a missing file.
note_line() {
  setup_line=${BASH_LINENO[${#BASH_LINENO[@]} - 2]}
}
setup_failed() {
  echo "jobs: error: the setup failed with status $1${setup_line:+ at: $(sed -n "${setup_line}p" "$0")}" >&2
}
set -eE -o pipefail
trap note_line ERR
trap 'setup_failed $?' EXIT
ulimit -c 0
