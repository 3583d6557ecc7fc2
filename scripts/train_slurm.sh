#!/usr/bin/env bash
# A training on a SLURM cluster, one process a GPU. From the root of the checkout:
#
#   sbatch --nodes=2 scripts/train_slurm.sh --config=experiments/lung.py:paper --config.train.pairs_per_batch=8
#
# pairs_per_batch counts over all GPUs. All nodes must see the workdir and the cohort. Two minutes before the time is over, and on preemption, every process gets SIGTERM:
# the run saves, ends with status 75 and is queued again; it goes on from there by itself.
#
#SBATCH --job-name=lmreg
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
trap : TERM # Meant for the processes; this shell stays to queue the job again.

# LMREG_PYTHON: the interpreter of your environment, if it is not the python on the PATH.
srun --kill-on-bad-exit=0 "${LMREG_PYTHON:-python}" -m experiments.train --distributed "$@" &
step=$!
wait "$step"
status=$?
while kill -0 "$step" 2> /dev/null; do # A signal ended the wait, not the step.
  wait "$step"
  status=$?
done
if [ "$status" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
