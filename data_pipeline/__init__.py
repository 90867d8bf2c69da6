"""Data of Memory Sparse Attention: text protocol, tokenizer, sources, shards.

Importing the package is light; webdataset and wonderwords load with the modules that use them.
"""

from data_pipeline.errors import DataError
from data_pipeline.schema import Context, Document, Piece, Query, Role, Sample

__all__ = ["Context", "DataError", "Document", "Piece", "Query", "Role", "Sample"]
