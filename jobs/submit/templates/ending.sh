# shellcheck shell=bash
# How the job ends, whichever way it was submitted: with the status of its work. 75 says that the time was up and more
# is left, 138 and 140 that the warning of it (USR1, USR2) came before the work could listen; the same job then goes on
# from the queue, where that is allowed. So it does where another process was killed, whose status is higher than 75.
put_back() {
  # A job whose node was given up runs elsewhere by now, and its own processes may live on here: they leave it alone.
  restarts=$(scontrol show job "$1" | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p' | head -n 1)
  if [ -n "$restarts" ] && [ "$restarts" -ne "${SLURM_RESTART_COUNT:-0}" ]; then
    echo "jobs: job $1 has been started again elsewhere" >&2
    return 0
  fi
  for seconds in 5 20 60; do
    if scontrol requeue "$1"; then
      echo "jobs: the time was up, job $1 goes on from the queue" >&2
      return 0
    fi
    sleep "$seconds" # every task of an array may reach its limit in this moment
  done
  return 1
}
stopped_in_time() {
  own=$SDBATCH_RUN/workers/${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-}}/${SLURM_ARRAY_TASK_ID:-0}
  for ((rank = 0; rank < SDBATCH_CARDS; rank++)); do
    if grep -qs '"end": "out of time"' "$own-$rank-${SLURM_RESTART_COUNT:-0}-"*.json; then return 0; fi
  done
  return 1
}
finish() {
  status=$?
  case $status in 138 | 140) status=75 ;; esac
  time_up=0
  if [ "$status" -eq 75 ] || { [ "$status" -gt 75 ] && [ "$status" -ne 143 ] && stopped_in_time; }; then time_up=1; fi
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}
  job=${job:-${SLURM_JOB_ID:-}}
  echo "jobs: job $job ended with status $status on $(hostname)" >&2
  if [ "$time_up" -eq 1 ] && { [ "$SDBATCH_REQUEUE" != 1 ] || ! put_back "$job"; }; then
    echo "jobs: the time was up; where no further job waits: python -m jobs resume $SDBATCH_RUN" >&2
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM # behind the work, which is told too
