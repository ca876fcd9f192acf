"""The LightningModule: loss, optimiser and per-epoch measurements of a flow."""

import math
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from flowbench import size
from flowbench.capture import Captured
from flowbench.config import Experiment
from flowbench.data.batches import Batch
from flowbench.errors import Diverged
from flowbench.evaluation import likelihood
from flowbench.flow import Flow
from flowbench.means import Means
from flowbench.seeding import Noise
from flowbench.watch import Broken, Watch

VALIDATION_NOISE = 2412
SHAPES = 4096
"""Flows of different shapes that a process compiles; torch's own limit is 8, and it runs all beyond
uncompiled, with a warning, where a study has dozens."""


def build_flow(experiment: Experiment, shape: tuple[int, int, int], classes: int) -> Flow:
    """Build the flow of an experiment for images of this shape and number of classes."""
    arguments = asdict(experiment.model)
    conditional = arguments.pop("conditional")
    return Flow(shape, classes if conditional else 0, **arguments)


class FlowModule(LightningModule):
    """Maximum likelihood of noisy images under a flow.

    Training measures ``train/loss``, ``train/prior``, ``train/logdet`` and ``grad_norm``;
    validation measures the same three losses, the largest |log_slope| of every block and the share
    of its inputs in the transform's tails.

    All noise follows from its place (seed, epoch, image), not from earlier draws: a resumed run, or
    one on another number of devices, draws the same, and samples drawn in between do not change the
    training. Validation noise is the same in every epoch and every run, so curves compare weights,
    not noise.

    Args:
        experiment: The whole configuration; it goes into every checkpoint.
        shape: Channels, height and width of the images.
        classes: Number of classes; 0 where images have no labels.

    Attributes:
        spent: Seconds of training at the end of the last step; the ``Budget`` callback sets it
            where the experiment has a budget of seconds.
    """

    def __init__(self, experiment: Experiment, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.experiment = experiment
        self.classes = classes
        self.flow = build_flow(experiment, shape, classes)
        self.flow.recompute = experiment.recompute
        self.trained, self.evaluated = Means(), Means()
        self._watch: Watch | None = None
        self._captured: dict[torch.Size, Captured] = {}
        self.spent = 0.0

    def dequantise(self, pixels: Tensor, noise: Noise) -> Tensor:
        """Turn pixels into the noisy images of the experiment's protocol, on their device."""
        data = self.experiment.data
        if data.noise == "uniform":
            return likelihood.dequantise_uniform(pixels, noise)
        return likelihood.dequantise_gaussian(pixels, data.noise_std, noise)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of one batch, and show it to the watch."""
        images, y = self._noisy(batch, self.current_epoch)
        loss, prior, logdet = self._objective(self._replayed(images, y), images, y)
        self.watch.loss(loss, (batch, self.current_epoch, self._when()))
        self.trained.add(len(y), **_losses("train", prior, logdet))
        return loss

    def _replayed(self, images: Tensor, y: Tensor) -> nn.Module:
        """The flow, captured at the first images of their shape if the experiment asks for it."""
        if not self.experiment.capture or self.experiment.compile:
            return self.flow
        if images.shape not in self._captured:
            self._captured[images.shape] = Captured(self.flow, images, y)
        return self._captured[images.shape]

    def _objective(
        self, flow: nn.Module, images: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is minimised, with the penalty if there is one; prior and logdet."""
        weight = self.experiment.optim.norm_penalty
        latents: list[Tensor] = []
        given = (images, y, latents) if weight else (images, y)
        prior, logdet = likelihood.objective(*flow(*given))
        loss = prior - logdet
        for latent in latents:
            loss = loss + weight * latent.float().square().mean()
        return loss, prior, logdet

    def _noisy(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Mirror some images of a batch, add the noise of the epoch, hide some labels."""
        pixels, y, ids = batch
        place = (self.experiment.seed, epoch)
        if self.experiment.data.flip:
            mirrored = Noise(*place, 1, ids=ids).uniform(1, 1, 1) < 0.5
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        if share := self.experiment.optim.label_dropout:
            y = y.masked_fill(Noise(*place, 2, ids=ids).uniform() < share, -1)
        return self.dequantise(pixels, Noise(*place, 0, ids=ids)), y

    @property
    def watch(self) -> Watch:
        """The watch over losses and gradients, on the device of the flow."""
        if self._watch is None or self._watch.stop.device != self.device:
            self._watch = Watch(self.device)
        return self._watch

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ask the watch now and then after a step, and after the last batch of an epoch."""
        whole = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        last = batch_idx + 1 == self.trainer.num_training_batches
        if last or (whole and self.watch.due):
            self.check_finite()

    def check_finite(self) -> None:
        """Ask the watch; nothing is written before.

        Raises:
            Diverged: A loss or a gradient was not finite; the message says when and where.
        """
        if found := self.watch.ask():
            raise Diverged(self._explain(found))

    def on_fit_start(self) -> None:
        """Compile the flow in place if the experiment asks for it; torch then captures it itself.

        Flows of one shape share what is compiled, so only the first run of a process waits for it.
        """
        if self.experiment.compile:
            torch._dynamo.config.recompile_limit = SHAPES
            torch._dynamo.config.accumulated_recompile_limit = SHAPES
            self.flow.compile(mode="reduce-overhead" if self.experiment.capture else None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what builds the flow again, as plain values, together with the weights."""
        self.check_finite()
        checkpoint["flowbench"] = {
            "experiment": asdict(self.experiment),
            "shape": tuple(self.flow.shape),
            "classes": self.classes,
            "trained": self.trained.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the means of an interrupted epoch."""
        self.trained.load_state_dict(checkpoint["flowbench"]["trained"])

    def on_validation_epoch_start(self) -> None:
        """Reset the measurements."""
        self.evaluated.clear()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure losses and per-block diagnostics of one batch."""
        pixels, y, ids = batch
        images = self.dequantise(pixels, Noise(VALIDATION_NOISE, ids=ids))
        log_det = torch.zeros(len(y), device=self.device)
        z = pixels
        for i, step in enumerate(self.flow.trace(images, y)):
            z, log_det = step.z, log_det + step.log_slope.sum((1, 2))
            outside = self.flow.blocks[i].transform.outside(step.x, step.params).float().mean()
            self.evaluated.add(len(y), **{f"outside/block_{i}": outside})
            self.evaluated.peak(**{f"max_log_slope/block_{i}": step.log_slope.abs().max()})
        self.evaluated.add(len(y), **_losses("val", *likelihood.objective(z, log_det)))

    def on_validation_epoch_end(self) -> None:
        """Log the measurements for the Trainer's own logger and callbacks."""
        self.log_dict(self.evaluated.values(), sync_dist=self.trainer.world_size > 1)

    def on_train_epoch_end(self) -> None:
        """Log the means of the training, where no ``EpochRecord`` has taken them."""
        self.log_dict(self.trained.take(), sync_dist=self.trainer.world_size > 1)

    @property
    def last_step(self) -> int | None:
        """The step that ends the training by steps or FLOPs; None where neither does."""
        world = self.trainer.world_size * self.trainer.accumulate_grad_batches
        images = self.experiment.data.batch * world
        return size.last_step(self.experiment, self.flow.shape, self.classes, images)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with weight decay on matrices only, warm-up and cosine, stepped every batch.

        The cosine follows the steps after the warm-up. Under a budget of seconds the number of
        steps is unknown: the cosine then follows the share of the seconds spent since the start,
        and multiplies the warm-up, which always counts steps.
        """
        optim = self.experiment.optim
        matrices = [m.weight for m in self.flow.modules() if isinstance(m, nn.Linear)]
        decayed = set(matrices)
        rest = [p for p in self.flow.parameters() if p not in decayed]
        groups = [
            {"params": matrices, "weight_decay": optim.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        # A fused step unscales gradients itself, too late for clipping.
        adam = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=not self._scaled())
        self.trainer.fit_loop.setup_data()  # else the number of batches may not be known yet
        total = self.trainer.estimated_stepping_batches  # infinite if seconds end the training
        total = min(total, self.last_step or math.inf)
        steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        warmup = min(optim.warmup_epochs * steps, total)
        floor = optim.min_lr / optim.lr
        budget = self.experiment.seconds

        def factor(step: int) -> float:
            done = self.spent / budget if budget else (step - warmup) / max(1, total - warmup)
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))
            return min(1.0, (step + 1) / (warmup + 1)) * (floor + (1 - floor) * cosine)

        schedule = torch.optim.lr_scheduler.LambdaLR(adam, factor)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient's norm to ``optim.clip``, and show it to the watch."""
        norm = self._norm()
        if not self._scaled():  # a gradient scaler expects infinite gradients, and skips the step
            self.watch.gradient(norm)
            optimizer.found_inf = self.watch.stop  # type: ignore[attr-defined]
        limit = self.experiment.optim.clip or math.inf
        nn.utils.clip_grads_with_norm_(self.flow.parameters(), limit, norm)
        self.trained.add(1, grad_norm=norm)

    def _norm(self) -> Tensor:
        parameters = self.flow.parameters()
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def _scaled(self) -> bool:
        plugin = self.trainer.precision_plugin if self._trainer else None
        return getattr(plugin, "scaler", None) is not None

    def _when(self) -> str:
        return f"diverged at step {self.global_step} (epoch {self.current_epoch + 1})"

    def _explain(self, found: Broken) -> str:
        """Compute a step again that was not finite, and say where it went wrong."""
        *_, (last, epoch, when) = found.batches
        if not found.gradient:
            images, y = self._noisy(last, epoch)
            with torch.no_grad(), self._precision():
                loss, *_ = self._objective(self.flow, images, y)
                return f"{when}: the loss is {loss.item()}, {self._where(images, y)}"
        self._accumulate(found.batches)
        return f"{when}: the gradient's norm is {self._norm().item()}, {self._where_gradient()}"

    def _accumulate(self, batches: list[tuple[Batch, int, str]]) -> None:
        """Compute the gradient of the last step of some batches again."""
        self.flow.zero_grad()
        for batch, epoch, _ in [kept for kept in batches if kept[2] == batches[-1][2]]:
            with torch.enable_grad(), self._precision():
                loss, *_ = self._objective(self.flow, *self._noisy(batch, epoch))
            loss.backward()

    def _precision(self) -> AbstractContextManager[None]:
        return self.trainer.precision_plugin.forward_context()

    @torch.no_grad()
    def _where(self, images: Tensor, y: Tensor) -> str:
        for i, step in enumerate(self.flow.trace(images, y)):
            for name, tensor in step._asdict().items():
                if not torch.isfinite(tensor).all():
                    return f"first in block {i} of {len(self.flow.blocks)} ({name})"
        return "but every block's output is finite: their sum overflows"

    def _where_gradient(self) -> str:
        # The backward pass runs from the last block to the first: the last bad one failed first.
        for i, block in reversed(list(enumerate(self.flow.blocks))):
            for name, parameter in block.named_parameters():
                if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                    return f"first in block {i} of {len(self.flow.blocks)} ({name})"
        return "but every gradient is finite: the sum of their squares overflows"


def _losses(stage: str, prior: Tensor, logdet: Tensor) -> dict[str, Tensor]:
    values = {"loss": prior - logdet, "prior": prior, "logdet": logdet}
    return {f"{stage}/{key}": value for key, value in values.items()}
