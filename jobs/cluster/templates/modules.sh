# shellcheck shell=bash
# List every module, one a line, or nothing where there are none. The function is looked for as in site.sh.
if ! command -v module > /dev/null; then
  for init in /etc/profile.d/{modules,lmod,z00_lmod}.sh /usr/share/{modules,Modules,lmod/lmod}/init/bash; do
    if [ -r "$init" ]; then
      # shellcheck disable=SC1090  # the site's own file
      . "$init"
      break
    fi
  done
fi
if command -v module > /dev/null; then
  module -t avail 2>&1
fi
exit 0
