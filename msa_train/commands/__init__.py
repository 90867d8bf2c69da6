"""The commands of `msa`: each module has register(commands) and functions run(options) -> exit code.

They wire rooms together and print; nothing is computed here.
"""
