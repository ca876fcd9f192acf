"""What the kernels of a transformer ask of its sizes: ``network.h``."""

LANES = 16


def fills_vectors(width: int, heads: int, hidden: int) -> bool:
    """Whether channels, those of a head and those of the MLP are whole vectors."""
    return all(n % LANES == 0 for n in (width, width // heads, hidden))
