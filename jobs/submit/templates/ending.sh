# shellcheck shell=bash
# How the job ends, whichever way it was submitted: with the status of its work. 75 says that the time was up and more
# is left, 138 and 140 that the warning of it (USR1, USR2) came before the work could listen; the same job then goes on
# from the queue, where that is allowed.
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
finish() {
  status=$?
  case $status in 138 | 140) status=75 ;; esac
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}
  job=${job:-${SLURM_JOB_ID:-}}
  echo "jobs: job $job ended with status $status on $(hostname)" >&2
  if [ "$status" -eq 75 ] && { [ "$SDBATCH_REQUEUE" != 1 ] || ! put_back "$job"; }; then
    echo "jobs: the time was up; where no further job waits: python -m jobs resume $SDBATCH_RUN" >&2
  fi
  exit "$status"
}
trap finish EXIT
