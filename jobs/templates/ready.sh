# shellcheck shell=bash
# After the lines of the site: the project comes first among Python's modules, whatever they set.
trap - ERR EXIT
export PYTHONPATH="$SDBATCH_ROOT${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
