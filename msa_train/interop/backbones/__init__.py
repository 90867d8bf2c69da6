"""Pretrained backbones become start folders (docs/backbones.md).

backbone.py says what a backbone is, folder.py and gguf_file.py are the two forms it comes in, and
convert.py writes the start folder.
"""
