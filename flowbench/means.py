"""Means over an epoch, however it was split into batches, devices and sittings; pure torch.

torchmetrics 1.9 does not serve here: its ``MeanMetric`` waits for the device at every update to
look for NaN, and where that is disabled it ignores the weights.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Means:
    """Means and maxima of named values over all images of an epoch.

    Each mean is one sum divided by one count, so it does not depend on the batches and devices; an
    epoch that was interrupted continues from its checkpoint.

    Example:
        >>> means = Means()
        >>> means.add(3, loss=torch.tensor(1.0))
        >>> means.add(1, loss=torch.tensor(5.0))
        >>> means.take()
        {'loss': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._peaks: dict[str, Tensor] = {}

    def add(self, count: int, **values: Tensor) -> None:
        """Add scalars that are means over ``count`` images; waits for no device."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float() * count
            self._counts[name] = self._counts.get(name, 0) + count

    def peak(self, **values: Tensor) -> None:
        """Keep the largest of these scalars."""
        for name, value in values.items():
            value = value.detach().float()
            self._peaks[name] = torch.maximum(self._peaks.get(name, value), value)

    def take(self) -> dict[str, float]:
        """Return the means and maxima over all devices, and start a new epoch."""
        values = self.values()
        self.clear()
        return values

    def values(self) -> dict[str, float]:
        """Return the means and maxima over all devices so far."""
        state = self.state_dict()
        means = {k: (total / state["counts"][k]).item() for k, total in state["sums"].items()}
        return means | {name: peak.item() for name, peak in state["peaks"].items()}

    def clear(self) -> None:
        """Start a new epoch."""
        self._sums, self._counts, self._peaks = {}, {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of all devices; each of them has to call this."""
        counts = {k: torch.tensor(n, device=self._sums[k].device) for k, n in self._counts.items()}
        return {
            "sums": _over_devices(self._sums, dist.ReduceOp.SUM),
            "counts": _over_devices(counts, dist.ReduceOp.SUM),
            "peaks": _over_devices(self._peaks, dist.ReduceOp.MAX),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there on the first device: the sums are those of all devices together."""
        self.clear()
        if not dist.is_initialized() or dist.get_rank() == 0:
            self._sums, self._peaks = dict(state["sums"]), dict(state["peaks"])
            self._counts = {name: int(count) for name, count in state["counts"].items()}


def _over_devices(values: dict[str, Tensor], operation: Any) -> dict[str, Tensor]:
    if not values:
        return {}
    together = torch.stack(list(values.values()))
    if dist.is_initialized():
        dist.all_reduce(together, operation)
    return dict(zip(values, together.cpu(), strict=True))
