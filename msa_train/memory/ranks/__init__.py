"""Memory Parallel: the documents of a bank searched by several processes of one machine."""

from msa_train.memory.ranks.ranks import Ranks
from msa_train.memory.ranks.searcher import DistributedSearcher
from msa_train.memory.ranks.snapshot import GenerationGoneError

__all__ = ["DistributedSearcher", "GenerationGoneError", "Ranks"]
