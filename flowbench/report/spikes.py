"""Values so far from all others that a scale with them would show nothing else."""

import pandas as pd

FENCE = 10.0


def fences(values: pd.Series) -> tuple[float, float]:
    """The limits beyond which a value lies far off.

    That is more than ten times the interquartile range from the nearer quartile.
    """
    low, high = values.quantile(0.25), values.quantile(0.75)
    reach = FENCE * (high - low)
    return low - reach, high + reach


def without_spikes(history: pd.DataFrame, metrics: list[str]) -> tuple[pd.DataFrame, str]:
    """Blank the epochs' values that lie far off, and say which: nothing is left out in silence.

    Far off is what lies beyond the fences of all runs and epochs, as a loss does that one image
    drives to 10⁸ for one epoch.

    Args:
        history: A row a run and epoch.
        metrics: The columns to look at.

    Returns:
        The history without them, and a sentence for the caption; empty where there are none.
    """
    drawn = history.copy()
    told = []
    for metric in metrics:
        values = history[metric]
        low, high = fences(values)
        far = (values < low) | (values > high)
        drawn.loc[far, metric] = float("nan")
        told += [
            f"{row[metric]:.3g} ({metric}, {row['transform']} seed {row['seed']:.0f}, "
            f"epoch {row['epoch']:.0f})"
            for _, row in history[far].iterrows()
        ]
    return drawn, f"Off the scale and not drawn: {'; '.join(told)}." if told else ""
