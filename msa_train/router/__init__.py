"""A router for a pretrained backbone, before and beside training (SPEC section 8)."""
