#!/bin/sh
# One run of a W&B sweep: an output of its own under the base run's, with the base run's shards.
#   sh launch/sweep.sh CONFIG BASE_OUTPUT --dotted.key=value ...     ranks: RANKS, or 1
# The agent sets WANDB_RUN_ID. (Its ${envvar:WANDB_RUN_ID} would be the id of the run before.)
set -eu
config=$1 base=$2
shift 2
output=$base/sweeps/$WANDB_RUN_ID
shards=$(cd "$base/shards" && pwd)
exec msa train --config "$config" --ranks "${RANKS:-1}" --resume --output "$output" \
    --training.shards "$shards" "$@"
