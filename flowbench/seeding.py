"""Random numbers that follow from their place (seed, epoch, batch, …), not from earlier draws."""

import numpy as np
import torch


def generator(*place: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator for a place; those of different places share nothing.

    Args:
        place: Non-negative integers.
        device: Device of the generator: the same place gives other numbers on another device.

    Example:
        >>> first, again = (torch.rand(1, generator=generator(0, 7)) for _ in range(2))
        >>> bool(first == again)
        True
    """
    seed = np.random.SeedSequence(place).generate_state(1, np.uint64).item()
    return torch.Generator(device).manual_seed(seed)
