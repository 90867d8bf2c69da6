"""What a caller can do wrong, said in terms of the argument, its value and the remedy."""


class KernelError(ValueError):
    """An operation was given tensors it cannot take, or no backend can run it here."""

    exit_code = 9
