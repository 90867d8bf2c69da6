#!/bin/sh
# A run on the GPUs of this machine, which goes on by itself when a rank dies.
#   sh launch/one_node.sh CONFIG [--dotted.key value ...]     ranks: RANKS, or all GPUs
# --resume continues the newest good checkpoint; without one the run begins.
set -eu
config=$1
shift
ranks=${RANKS:-$(nvidia-smi --list-gpus | wc -l)}
exec msa train --config "$config" --ranks "$ranks" --resume --max-restarts 3 "$@"
