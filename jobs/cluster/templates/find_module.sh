# shellcheck shell=bash
# The function `module`, where a shell that is no login shell lacks it.
if ! command -v module > /dev/null; then
  for init in /etc/profile.d/{modules,lmod,z00_lmod}.sh /usr/share/{modules,Modules,lmod/lmod}/init/bash; do
    if [ -r "$init" ]; then
      # shellcheck disable=SC1090  # the site's own file
      . "$init"
      break
    fi
  done
fi
