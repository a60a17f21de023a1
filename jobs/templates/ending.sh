# shellcheck shell=bash
# How the job ends, whichever way it was submitted: with the status of its work. 75 says that the time was up and more
# is left, 138 and 140 that the warning of it (USR1, USR2) came before the work could listen; the same job then goes on
# from the queue, where that is allowed.
finish() {
  status=$?
  case $status in 138 | 140) status=75 ;; esac
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}
  job=${job:-${SLURM_JOB_ID:-}}
  echo "jobs: job $job ended with status $status on $(hostname)" >&2
  if [ "$status" -eq 75 ] && [ "$SDBATCH_REQUEUE" = 1 ]; then
    if scontrol requeue "$job"; then
      echo "jobs: the time was up, job $job goes on from the queue" >&2
    else
      echo "jobs: error: job $job cannot be put back into the queue; type: python -m jobs resume $SDBATCH_RUN" >&2
    fi
  fi
  exit "$status"
}
trap finish EXIT
