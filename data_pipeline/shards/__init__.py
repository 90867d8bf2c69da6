"""Shards of training samples.

contexts.py makes a sample of a bank, sampling.py every sample of a corpus, build.py the shards;
reader.py, order.py and loader.py read them again.
"""
