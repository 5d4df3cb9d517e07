#!/bin/sh
#PBS -N p2pscoop
#PBS -l nodes=4:ppn=8
#PBS -l walltime=01:00:00

# Hosts and counts come from PBS_NODEFILE. Needs ssh between the nodes of the job.
cd "${PBS_O_WORKDIR:-.}" || exit
exec p2pscoop run "${SCRIPT:-program.py}" "$@"
