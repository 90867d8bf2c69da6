"""Cleaning of a dataset folder: duplicates, evaluation text in training data, quality.

`clean_dataset` reads one folder and writes another; `msa data clean` is its command. rensa
(MinHash) loads with `near` alone.
"""
