"""Losses and gradients watched on the device: whether all are finite, and which was the first."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

STEPS = {"cuda": 64}
"""Batches between two questions, by type of device; elsewhere asking costs nothing: 1."""


class Broken(NamedTuple):
    """What a watch has seen.

    Attributes:
        gradient: Whether it was a gradient; otherwise a loss.
        batches: What was kept of the batches of that step, its own as the last.
    """

    gradient: bool
    batches: list[Any]


class Watch:
    """Sees whether losses and gradients are finite without making the host wait for the device.

    From the first that is not, ``stop`` is 1, and the optimiser that has it as its ``found_inf``
    leaves the weights as they were before that step, which can then be done again.

    Args:
        device: Where losses and gradients are.

    Attributes:
        stop: 0.0, or 1.0 from the first loss or gradient that is not finite.
        every: Batches after which it has to be asked.
    """

    def __init__(self, device: torch.device) -> None:
        self.every = STEPS.get(device.type, 1)
        self.stop = torch.zeros((), device=device)
        self._good = torch.zeros((), device=device)
        self._gradient = torch.zeros((), device=device)
        self._batches: list[Any] = []

    @property
    def due(self) -> bool:
        """Whether so many batches were seen that it has to be asked."""
        return len(self._batches) >= self.every

    def loss(self, loss: Tensor, batch: Any) -> None:
        """See the loss of a batch.

        Args:
            loss: A scalar.
            batch: What to keep of the batch until the next question, to compute it again.
        """
        self._batches.append(batch)
        torch.maximum(self.stop, _broken(loss), out=self.stop)
        self._good += 1 - self.stop

    def gradient(self, norm: Tensor) -> None:
        """See the norm of the gradient of the batches since the last one."""
        bad = _broken(norm) * (1 - self.stop)
        self._gradient += bad
        self.stop += bad

    def ask(self) -> Broken | None:
        """Return the first that was not finite, or None; this waits for the device."""
        stop, good, gradient = torch.stack([self.stop, self._good, self._gradient]).tolist()
        if not stop:
            self._batches.clear()
            self._good.zero_()
            return None
        at = int(good) - (1 if gradient else 0)
        return Broken(bool(gradient), self._batches[: at + 1])


def _broken(value: Tensor) -> Tensor:
    return (~torch.isfinite(value.detach())).to(torch.float32)
