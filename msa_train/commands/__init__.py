"""The commands of `msa`: each module has register(commands); nothing is computed here."""
