#!/bin/sh
# A run on several machines that this one reaches by ssh without a password (and pdsh).
#   sh launch/hostfile.sh HOSTFILE CONFIG [--dotted.key value ...]
# A line of HOSTFILE is a machine and its GPUs: "node1 slots=8". All machines share this folder, its
# .venv and the output. A machine that died is waited for: if it does not come back, take it out of
# the file and start again; the run goes on with the ranks that are left, as long as they can share
# training.batch_samples.
set -eu
hostfile=$1 config=$2
shift 2
exec msa train --config "$config" --hostfile "$hostfile" --resume --max-restarts 3 "$@"
