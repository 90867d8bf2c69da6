"""Reads question answering and retrieval datasets as published, writes our dataset folder."""

from data_pipeline.converters.builder import Converted
from data_pipeline.converters.registry import CONVERTERS, Converter, convert

__all__ = ["CONVERTERS", "Converted", "Converter", "convert"]
