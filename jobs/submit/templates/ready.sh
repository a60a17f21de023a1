# shellcheck shell=bash
# After the lines of the site: the project comes first among Python's modules, and the profile's folders first among
# the libraries, whatever they set.
trap - ERR EXIT
export PYTHONPATH="$SDBATCH_ROOT${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
if [ -n "$SDBATCH_LD_LIBRARY_PATH" ]; then
  export LD_LIBRARY_PATH="$SDBATCH_LD_LIBRARY_PATH${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
if ! command -v "$SDBATCH_PYTHON" > /dev/null; then
  echo "jobs: error: the job's Python, $SDBATCH_PYTHON, is no program on $(hostname); give cluster.python=/absolute/path" >&2
  exit 127
fi
# Another Python than the one that was meant says so here, before it says something else further on.
"$SDBATCH_PYTHON" - << 'END' || exit
import os, sys
me = "jobs: error: the job's Python, %s (%d.%d)," % ((sys.executable,) + tuple(sys.version_info[:2]))
advice = "; give cluster.python=/absolute/path/of/python of the environment that has sdbatch's packages"
if sys.version_info < (3, 8):
    sys.exit(me + " is older than 3.8" + advice)
from importlib.util import find_spec
missing = [name for name in os.environ["SDBATCH_PACKAGES"].split() if find_spec(name) is None]
if missing:
    sys.exit(me + " has no " + ", ".join(missing) + advice)
END
