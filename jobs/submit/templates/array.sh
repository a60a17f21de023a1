# shellcheck shell=bash
set -u
# One process a card. They are independent: one that fails does not end the others (a site may have set otherwise).
# What was exported above reaches them also where the job itself was given --export=NONE.
srun --ntasks="$SDBATCH_CARDS" --cpus-per-task="$SDBATCH_CPUS_PER_CARD" --kill-on-bad-exit=0 --wait=0 \
  --export=ALL \
  "$SDBATCH_PYTHON" -m jobs work --part "$SLURM_ARRAY_TASK_ID/$SDBATCH_PARTS" "$SDBATCH_RUN" \
  "batch_size=$SDBATCH_BATCH_SIZE" "device=$SDBATCH_DEVICE"
