#!/bin/sh
#SBATCH --job-name=p2pscoop
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --time=01:00:00

# Hosts and counts come from SLURM_JOB_NODELIST and SLURM_TASKS_PER_NODE. Needs ssh between the nodes of the job.
# Without ssh, but with the key of `p2pscoop keygen`: `srun p2pscoop run` instead.
# With `#SBATCH --signal=B:USR1@60` the program gets SIGUSR1 a minute before its time is up, to save what it has.
exec p2pscoop run "${SCRIPT:-program.py}" "$@"
