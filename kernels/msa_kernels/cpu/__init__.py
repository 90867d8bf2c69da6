"""The fast torch paths: tiled and batched so that scratch stays within a budget. Any device."""
