"""A memory bank on disk: immutable segments, removed numbers, a manifest replaced atomically."""
