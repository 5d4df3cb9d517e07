#!/bin/sh
#$ -N p2pscoop
#$ -pe orte 32
#$ -l h_rt=01:00:00
#$ -cwd
#$ -V

# Hosts and counts come from PE_HOSTFILE; `orte` is a parallel environment that your site may call otherwise. Needs
# ssh between the hosts of the job.
exec p2pscoop run "${SCRIPT:-program.py}" "$@"
