"""The bootstrap over seeds: runs of one seed stay together, for they share what it decides."""

import numpy as np

TIMES = 400
INTERVAL = (0.025, 0.975)
"""Quantiles that bound 95 %."""


def resamples(seeds: int) -> np.ndarray:
    """Places of seeds drawn with replacement, ``[400, seeds]``; the same whenever they are asked.

    Example:
        >>> resamples(3).shape, bool((resamples(3) == resamples(3)).all())
        ((400, 3), True)
    """
    return np.random.default_rng(0).integers(0, seeds, (TIMES, seeds))
