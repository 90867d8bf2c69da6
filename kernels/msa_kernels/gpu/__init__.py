"""The Triton kernels. Imported on first use, so that triton stays optional.

Conventions: row numbers and their products with widths are 64-bit (100M tokens x 1,024 values pass
2^31); no length is a compile-time constant or part of an autotune key; nothing depends on the
order in which programs run.
"""
