#!/bin/sh
# A run on machines that do not reach each other by ssh: this, on each of them.
#   NODES=2 MASTER=10.0.0.1:29500 sh launch/without_ssh.sh CONFIG [--dotted.key value ...]
# MASTER is a port of one of them. GPUS: ranks on this machine (all its GPUs). All machines share
# the output. After a death torchrun starts all ranks again, RESTARTS times (3), whatever they died
# of; each continues from the newest good checkpoint.
set -eu
config=$1
shift
# Seconds in which its ranks finish a step and save after SIGTERM; torchrun's own are 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-270}"
# torch would else keep one store for all starts, in which new ranks find
# the addresses of dead ones.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun \
    --nnodes "${NODES:-1}" --nproc-per-node "${GPUS:-gpu}" --max-restarts "${RESTARTS:-3}" \
    --rdzv-backend c10d --rdzv-id "${RUN_ID:-msa-train}" --rdzv-endpoint "$MASTER" \
    "$(dirname "$0")/train.py" --config "$config" --resume "$@"
