# shellcheck shell=bash
set -u
# What comes behind the last picture, each step whatever became of the one before; the worst status is the job's.
if [ -e "$SDBATCH_RUN/pause" ]; then
  echo "jobs: the run is paused; resume has this done when it is not" >&2
  exit
fi
worst=0
step() {
  status=0
  "$SDBATCH_PYTHON" -m jobs "$@" || status=$?
  if [ "$status" -gt "$worst" ]; then worst=$status; fi
}
for name in $SDBATCH_STEPS; do
  step "$name" "$SDBATCH_RUN"
done
if [ -n "$SDBATCH_WEBHOOK" ]; then
  step notify "$SDBATCH_RUN" "webhook=$SDBATCH_WEBHOOK"
fi
exit "$worst"
