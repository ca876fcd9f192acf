#!/bin/sh
# The workers of a study as the tasks of a SLURM job array:
#
#   sbatch --array=0-7 sweeps/slurm.sh bins full
#
# Each task takes trials until none is left. A task that is stopped or preempted saves its trial, and
# another goes on with it where they share a file system; else begins it again.
#SBATCH --job-name=flowbench
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.txt
set -eu
: "${MLFLOW_TRACKING_URI:?the address of an MLflow server or a PostgreSQL database for the runs}"
: "${FLOWBENCH_STORAGE:?the address of another PostgreSQL database, for the trials}"
exec flowbench sweep "$1" --scale "${2:-full}" --workers 1
