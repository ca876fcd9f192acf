"""The size of a flow before anything is allocated: parameters, and memory to train them."""

import math

import psutil
import torch

from flowbench.config import Data, Experiment, Model
from flowbench.errors import UsageError
from flowbench.schema import FLOPS
from flowbench.transforms import parse
from flowbench.vit import default_heads

FLOAT = 4
_SIDES = {"photos": 28, "crops": 28, "cifar10": 32, "cifar100": 32, "svhn": 32, "32": 32, "64": 64}
"""Sides of colour images in pixels, by the last word of their set's name."""


def image_shape(data: Data) -> tuple[int, int, int]:
    """Return channels, height and width of a data set's images, without reading them."""
    if data.name in ("folder", "celeba"):
        return data.channels, data.size, data.size
    side = _SIDES.get(data.name.rpartition("-")[2])
    return (3, side, side) if side else (1, 28, 28)


def parameters(model: Model, shape: tuple[int, int, int], classes: int) -> int:
    """Count the parameters of a flow.

    Args:
        model: Its configuration.
        shape: Channels, height and width of the images.
        classes: Number of classes; 0 where images have no labels.
    """
    tokens, features = _grid(model, shape)
    width, hidden = model.width, model.expansion * model.width
    outputs = parse(model.transform).num_params * features
    attention = 2 * width + (width + 1) * 3 * width + (width + 1) * width
    mlp = 2 * width + (width + 1) * hidden + (hidden + 1) * width
    ends = (features + 1) * width + (width + 1) * outputs
    classes = classes if model.conditional else 0
    first = {"identity": 0, "learned": max(1, classes) * outputs, "token": width}[model.start]
    in_layer = attention + mlp
    if model.qk_norm:
        in_layer += 2 * (width // (model.heads or default_heads(width)))
    around = ends + (tokens + classes) * width + first + (2 * width if model.final_norm else 0)
    return model.blocks * around + model.total_layers * in_layer


TRAINING_IMAGES = {
    "mnist-5k": 4000,
    "digits-on-photos": 4000,
    "photo-crops": 4000,
    "mnist": 55_000,
    "fashion-mnist": 55_000,
    "kmnist": 55_000,
    "cifar10": 45_000,
    "cifar100": 45_000,
}
"""Images for training, of the data sets that always have as many."""


def training_flops(experiment: Experiment) -> float | None:
    """Estimate the FLOPs of a training without reading its data; None where that is not possible.

    6 · parameters · patches · images seen: without attention and the transform itself.
    """
    data, shape = experiment.data, image_shape(experiment.data)
    if experiment.flops:
        return experiment.flops
    images = data.train_images or TRAINING_IMAGES.get(data.name)
    epochs = experiment.trainer.get("max_epochs") or -1
    plain = "max_steps" not in experiment.trainer and not experiment.seconds
    if images is None or epochs < 1 or not plain:
        return None
    return _flops(experiment.model, shape, 10, images * epochs)


def _flops(model: Model, shape: tuple[int, int, int], classes: int, images: int) -> int:
    """Estimate the FLOPs of training on so many images."""
    tokens, _ = _grid(model, shape)
    return FLOPS * parameters(model, shape, classes) * tokens * images


def last_step(
    experiment: Experiment, shape: tuple[int, int, int], classes: int, images: int
) -> int | None:
    """Return the step that ends the training, by ``trainer.max_steps`` or by ``flops``.

    Args:
        experiment: The whole configuration.
        shape: Channels, height and width of the images.
        classes: Number of classes; 0 where images have no labels.
        images: Images in a step, of all devices.

    Returns:
        The number of steps; None where neither ends the training.
    """
    ends = [most] if (most := experiment.trainer.get("max_steps") or -1) > 0 else []
    if experiment.flops:
        of_step = _flops(experiment.model, shape, classes, images)
        ends.append(max(1, round(experiment.flops / of_step)))
    return min(ends, default=None)


def memory(experiment: Experiment, shape: tuple[int, int, int], classes: int) -> int:
    """Estimate the bytes that training takes: to within a factor of two.

    Weights, gradients and the two moments of AdamW, with an average of the weights where there is
    one; and what a step keeps of every patch of a batch for its backward pass.

    Args:
        experiment: The whole configuration.
        shape: Channels, height and width of the images.
        classes: Number of classes; 0 where images have no labels.
    """
    model = experiment.model
    tokens, features = _grid(model, shape)
    copies = 5 if experiment.optim.ema else 4
    in_layer = (8 + 2 * model.expansion) * model.width + (model.heads or 1) * tokens
    around = 2 * model.width + features * (4 + 3 * parse(model.transform).num_params)
    in_blocks = model.total_layers * in_layer + model.blocks * around
    if experiment.recompute:  # one block at a time, and what enters each of them
        layers = model.layers if isinstance(model.layers, int) else max(model.layers)
        in_blocks = layers * in_layer + around + model.blocks * features
    kept = experiment.data.batch * tokens * in_blocks
    return FLOAT * (copies * parameters(model, shape, classes) + kept)


def check_fits(
    experiment: Experiment, shape: tuple[int, int, int], classes: int, device: torch.device
) -> None:
    """Check that a flow and its training fit into memory.

    Args:
        experiment: The whole configuration.
        shape: Channels, height and width of the images.
        classes: Number of classes; 0 where images have no labels.
        device: Where it trains.

    Raises:
        UsageError: Even half of the estimate does not.
    """
    room = available(device)
    needed = memory(experiment, shape, classes)
    if needed > 2 * room:
        keys = ("transform", "blocks", "layers", "width", "expansion", "patch")
        given = [f"model.{key} = {getattr(experiment.model, key)}" for key in keys]
        count = parameters(experiment.model, shape, classes)
        raise UsageError(
            f"{', '.join(given)}, data.batch = {experiment.data.batch} is not valid: {count:.3g} "
            f"parameters need about {_gib(needed)}, and the device has {_gib(room)}"
        )
    drawn = {
        "samples": experiment.evaluate.samples,
        "samples_per_class": experiment.evaluate.samples_per_class * max(10, classes),
        "fidelity_samples": experiment.evaluate.fidelity_samples,
    }
    for key, images in drawn.items():
        if images * math.prod(shape) * FLOAT > 2 * psutil.virtual_memory().total:
            value = getattr(experiment.evaluate, key)
            raise UsageError(f"evaluate.{key} = {value} is not valid: its images need more memory")


def available(device: torch.device) -> int:
    """Return the bytes of a device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _grid(model: Model, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return the patches of an image and the numbers in a patch."""
    channels, height, width = shape
    return height * width // model.patch**2, channels * model.patch**2
