#!/bin/sh
#BSUB -J p2pscoop
#BSUB -n 32
#BSUB -R "span[ptile=8]"
#BSUB -W 01:00

# Hosts and counts come from LSB_MCPU_HOSTS or LSB_DJOB_HOSTFILE. Needs ssh between the hosts of the job.
exec p2pscoop run "${SCRIPT:-program.py}" "$@"
