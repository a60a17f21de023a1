# shellcheck shell=bash
set -u
# What comes behind the last picture, each step whatever became of the one before; the worst status is the job's.
worst=0
for step in $SDBATCH_STEPS; do
  "$SDBATCH_PYTHON" -m jobs "$step" "$SDBATCH_RUN"
  status=$?
  if [ "$status" -gt "$worst" ]; then worst=$status; fi
done
if [ -n "$SDBATCH_WEBHOOK" ]; then
  "$SDBATCH_PYTHON" -m jobs notify "$SDBATCH_RUN" "webhook=$SDBATCH_WEBHOOK"
fi
exit "$worst"
