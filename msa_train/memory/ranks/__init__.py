"""Memory Parallel: the documents of a bank searched by several processes of one machine."""

from msa_train.memory.ranks.driver import Ranks
from msa_train.memory.ranks.shards import RankedShards
from msa_train.memory.ranks.snapshot import GenerationGoneError

__all__ = ["GenerationGoneError", "RankedShards", "Ranks"]
