"""Memory Parallel: the documents of a bank searched by several processes of one machine."""

from msa_train.memory.ranks.ranks import Ranks
from msa_train.memory.ranks.searcher import DistributedSearcher

__all__ = ["DistributedSearcher", "Ranks"]
