#!/bin/sh
# Serve memories from two GPUs of this machine (Memory Parallel, docs/memory.md).
#   sh launch/serve_two_gpus.sh EXPORT NAME=BANK [more options of msa serve, e.g. --keys int8]
#
# The server is rank 0: it holds the weights, and on cuda:0 the router keys of its share of the
# documents. It starts rank 1, which holds the other share on cuda:1, restarts it if it fails, and
# ends it with itself; the two meet over a file and loopback, so there is no port to choose.
#
# Two 80 GB cards hold the router keys of 100M tokens at 4B geometry as they are stored (57.6 GB);
# pooled K and V (115.2 GB) stay on disk, mapped. With the host memory for it, add: --states host.
# Ask first:  msa plan memory --tokens 100M --model 4b --gpus 2xA800-80GB --host-ram 512GiB
#
# CUDA_VISIBLE_DEVICES chooses the cards where there are more than two.
set -eu
if [ $# -lt 2 ]; then
    sed -n 's/^#   //p' "$0" >&2
    exit 2
fi
export_folder=$1 bank=$2
shift 2
exec msa serve "$export_folder" --bank "$bank" --ranks 2 "$@"
