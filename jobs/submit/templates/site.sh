# shellcheck shell=bash
# Before the lines of the site: what they may rely on. They are not written for `set -u`, so it is not set here.
if ! command -v module > /dev/null; then
  for init in /etc/profile.d/{modules,lmod,z00_lmod}.sh /usr/share/{modules,Modules,lmod/lmod}/init/bash; do
    if [ -r "$init" ]; then
      # shellcheck disable=SC1090  # the site's own file
      . "$init"
      break
    fi
  done
fi
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
