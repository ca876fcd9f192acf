"""The LightningModule: loss, optimiser and per-epoch measurements of a flow."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from flowbench.config import Experiment
from flowbench.errors import Diverged, UsageError
from flowbench.evaluation import likelihood
from flowbench.flow import Flow

VALIDATION_NOISE = 2412
TEST_NOISE = 6329


def build_flow(experiment: Experiment, shape: tuple[int, int, int], classes: int) -> Flow:
    """Build the flow of an experiment for images of this shape and so many labelled classes."""
    arguments = asdict(experiment.model)
    conditional = arguments.pop("conditional")
    return Flow(shape, classes if conditional else 0, **arguments)


class FlowModule(LightningModule):
    """Maximum likelihood of noisy images under a flow.

    Batches are ``(pixels uint8 [B, channels, height, width], labels int64 [B])``. Training logs
    ``train/loss``, ``train/prior``, ``train/logdet``, ``grad_norm`` and ``lr``; validation and test
    log the same three losses, ``bpd`` too under uniform noise, and validation the largest
    |log_slope| of every block and the share of its inputs in the transform's tails. Validation
    noise is the same in every epoch and every run, so that curves compare weights, not noise.

    Args:
        experiment: The whole configuration; it goes into every checkpoint.
        shape: Channels, height and width of the images.
        classes: Number of classes; 0 where images have no labels.
    """

    def __init__(self, experiment: Experiment, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.experiment = experiment
        self.classes = classes
        self.flow = build_flow(experiment, shape, classes)

    def dequantise(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Turn pixels into the noisy images of the experiment's protocol, on their device."""
        data = self.experiment.data
        if data.noise == "uniform":
            return likelihood.dequantise_uniform(pixels, generator)
        return likelihood.dequantise_gaussian(pixels, data.noise_std, generator)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Loss of one batch; raises ``Diverged`` where it is not finite."""
        pixels, y = batch
        images = self.dequantise(pixels)
        prior, logdet = likelihood.objective(*self.flow(images, y))
        loss = prior - logdet
        if not torch.isfinite(loss):
            raise Diverged(f"{self._when()}: the loss is {loss.item()}, {self._where(images, y)}")
        self._log_losses("train", len(y), prior, logdet)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put beside the weights what is needed to build the flow again, as plain values."""
        checkpoint["flowbench"] = {
            "experiment": asdict(self.experiment),
            "shape": tuple(self.flow.shape),
            "classes": self.classes,
        }

    def on_validation_epoch_start(self) -> None:
        """Start the validation noise anew."""
        self._noise = torch.Generator(self.device).manual_seed(VALIDATION_NOISE)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Losses and per-block diagnostics of one batch."""
        pixels, y = batch
        log_det = torch.zeros(len(y), device=self.device)
        z = pixels
        for i, step in enumerate(self.flow.trace(self.dequantise(pixels, self._noise), y)):
            z, log_det = step.z, log_det + step.log_slope.sum((1, 2))
            outside = self.flow.blocks[i].transform.outside(step.x, step.params).float().mean()
            steepest = step.log_slope.abs().max()
            self.log(f"max_log_slope/block_{i}", steepest, reduce_fx="max", logger=False)
            self.log(f"outside/block_{i}", outside, batch_size=len(y), logger=False)
        self._log_losses("val", len(y), *likelihood.objective(z, log_det))

    def on_test_epoch_start(self) -> None:
        """Start the test noise anew."""
        self._noise = torch.Generator(self.device).manual_seed(TEST_NOISE)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Losses of one batch, a mean over ``evaluate.draws`` draws of the noise."""
        pixels, y = batch
        for _ in range(self.experiment.evaluate.draws):
            z, log_det = self.flow(self.dequantise(pixels, self._noise), y)
            self._log_losses("test", len(y), *likelihood.objective(z, log_det))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with weight decay on matrices only, warm-up and cosine, stepped every batch."""
        optim = self.experiment.optim
        matrices = [m.weight for m in self.flow.modules() if isinstance(m, nn.Linear)]
        decayed = set(matrices)
        rest = [p for p in self.flow.parameters() if p not in decayed]
        groups = [
            {"params": matrices, "weight_decay": optim.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise UsageError("the learning rate needs an end: set trainer.max_epochs or max_steps")
        batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        warmup = min(optim.warmup_epochs * batches, total)
        floor = optim.min_lr / optim.lr

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            progress = min(1.0, (step - warmup) / max(1, total - warmup))
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

        schedule = torch.optim.lr_scheduler.LambdaLR(adam, factor)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,  # noqa: ARG002
        gradient_clip_val: float | None = None,  # noqa: ARG002
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002
    ) -> None:
        """Clip the gradient's norm to ``optim.clip``; raises ``Diverged`` where it is not finite."""
        limit = self.experiment.optim.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.flow.parameters(), limit)
        # Under a gradient scaler an infinite gradient is routine: the step is skipped.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not scaled and not torch.isfinite(norm):
            raise Diverged(f"{self._when()}: the gradient is not finite, {self._where_gradient()}")
        self.log("grad_norm", norm, on_step=False, on_epoch=True, logger=False)

    def _log_losses(self, stage: str, count: int, prior: Tensor, logdet: Tensor) -> None:
        values = {"loss": prior - logdet, "prior": prior, "logdet": logdet}
        self.log_dict(
            {f"{stage}/{key}": value.detach() for key, value in values.items()},
            on_step=False,
            on_epoch=True,
            batch_size=count,
            sync_dist=stage != "train",
            logger=False,
        )

    def _when(self) -> str:
        return f"diverged at step {self.global_step} (epoch {self.current_epoch + 1})"

    @torch.no_grad()
    def _where(self, images: Tensor, y: Tensor) -> str:
        for i, step in enumerate(self.flow.trace(images, y)):
            if bad := self._first_bad(step._asdict()):
                return f"first in block {i} of {len(self.flow.blocks)} ({bad})"
        return "though every block's output is finite: the sum over them overflows"

    def _where_gradient(self) -> str:
        # The backward pass runs from the last block to the first, so it began in the last bad one.
        gradients = (
            (i, name)
            for i in reversed(range(len(self.flow.blocks)))
            for name in self._bad_gradients(self.flow.blocks[i])
        )
        i, name = next(gradients)
        return f"first in block {i} of {len(self.flow.blocks)} ({name})"

    @staticmethod
    def _first_bad(tensors: dict[str, Tensor]) -> str | None:
        return next((k for k, v in tensors.items() if not torch.isfinite(v).all()), None)

    @staticmethod
    def _bad_gradients(block: nn.Module) -> Iterator[str]:
        for name, parameter in block.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                yield name
