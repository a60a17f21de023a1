#!/usr/bin/env bash
# Install Debian or Ubuntu packages that are not here yet, when we may:  tools/apt.sh [--required] PACKAGE|LIST-FILE...
# Without the right to install it says what to type, and it names what the system does not have, such as the Chromium of
# Debian on Ubuntu; either is an error with --required only.
set -euo pipefail
required=
if [ "${1:-}" = --required ]; then
  required=yes
  shift
fi

names() {
  local word
  for word in "$@"; do
    if [ -f "$word" ]; then sed 's/#.*//' "$word"; else echo "$word"; fi
  done
}

missing=()
for package in $(names "$@"); do
  dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  as_root=(sudo -n)
fi
install=(apt-get install --yes --no-install-recommends)
if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
  echo "Packages are missing and may not be installed from here. Type: sudo ${install[*]} ${missing[*]}" >&2
  [ -z "$required" ] || exit 2
  exit 0
fi
"${as_root[@]}" apt-get update --quiet
wanted=()
for package in "${missing[@]}"; do
  if [ -z "$required" ] && ! apt-cache show "$package" >/dev/null 2>&1; then
    echo "This system has no package $package; the tests that need it cannot run." >&2
  else
    wanted+=("$package")
  fi
done
[ ${#wanted[@]} -gt 0 ] || exit 0
echo "Installing: ${wanted[*]}"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}" "${wanted[@]}"
