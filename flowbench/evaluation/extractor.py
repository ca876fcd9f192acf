"""Images to features, by a network of torch-fidelity's registry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from flowbench.errors import UsageError
from flowbench.evaluation.cache import digest
from flowbench.terminal import tracked

BATCH = 64


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network whose features images are compared in, and the suffix of the metrics' names.

    Args:
        suffix: ``digits`` makes ``fid_digits``.
        network: The network, one that ``create`` has made.
        weights: Hash of its weights, 16 hexadecimal digits.
        colour: It takes three channels; grey images are repeated.
        accuracy: Share of the test images in whose class it reads the right one, where it is a
            classifier.
    """

    suffix: str
    network: FeatureExtractorBase
    weights: str
    colour: bool = False
    accuracy: float | None = None

    @property
    def layer(self) -> str:
        """The layer that FID is computed on by default, which all measures here are."""
        return str(self.network.get_default_feature_layer_for_metric("fid"))

    def features(self, pixels: Tensor) -> Tensor:
        """Features of uint8 images ``[N, C, H, W]``, float64 ``[N, D]`` on the CPU.

        In double precision because the means and covariances that follow are inexact in single.
        """
        return self.outputs(pixels)[self.layer]

    def labels(self, pixels: Tensor) -> Tensor:
        """Classes that a classifier reads in uint8 images ``[N, C, H, W]``, int64 ``[N]``."""
        return self.outputs(pixels)["logits"].argmax(1)

    def outputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """All layers that the network was made with, float64 ``[N, ...]`` on the CPU, by name."""
        device = next(self.network.parameters(), pixels).device
        batches = tracked(pixels.split(BATCH), f"features ({self.suffix})")
        parts = []
        # Features have to be the same on every device, as far as they can be: no TF32.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.no_grad(), exact:
            for batch in batches:
                batch = batch.expand(-1, 3, -1, -1) if self.colour else batch
                parts.append([layer.double().cpu() for layer in self.network(batch.to(device))])
        layers = map(torch.cat, zip(*parts, strict=True))
        return dict(zip(self.network.get_requested_features_list(), layers, strict=True))


def create(
    registered: str,
    suffix: str,
    layers: Sequence[str] = (),
    colour: bool = False,
    **options: Any,
) -> Extractor:
    """Make a network that is registered with torch-fidelity, one's own among them, on the CPU.

    The global random state is left alone.

    Args:
        registered: Its name in ``torch_fidelity.register_feature_extractor``.
        suffix: What metrics are called by.
        layers: Layers it is to put out; none: the one that FID is computed on.
        colour: It takes three channels.
        options: What its constructor takes, such as ``feature_extractor_weights_path``.

    Raises:
        UsageError: Nothing of this name is registered.
    """
    if registered not in FEATURE_EXTRACTORS_REGISTRY:
        known = ", ".join(FEATURE_EXTRACTORS_REGISTRY)
        raise UsageError(f"no feature extractor {registered!r} is registered: valid are {known}")
    kind = FEATURE_EXTRACTORS_REGISTRY[registered]
    wanted = list(layers or [kind.get_default_feature_layer_for_metric("fid")])
    with torch.random.fork_rng(devices=[]):
        network = create_feature_extractor(registered, wanted, cuda=False, verbose=False, **options)
    return Extractor(suffix, network, digest(network.state_dict())[:16], colour)
