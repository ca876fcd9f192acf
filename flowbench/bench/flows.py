"""The flow that training and sampling are measured on: the paper's for MNIST."""

from typing import Any

import torch
from torch import nn

from flowbench.flow import Flow

SHAPE, CLASSES = (1, 28, 28), 10
MODEL: dict[str, Any] = {"blocks": 4, "layers": 4, "width": 128, "patch": 4}
"""Its options, by the names that the configuration and ``Flow`` have for them."""
OUTPUT = 0.2
"""About how large the raw parameters of a flow with random weights are."""


def device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_flow(transform: str) -> Flow:
    """A flow that is far from the identity, and whose samples stay small all the same."""
    torch.manual_seed(0)
    flow = Flow(SHAPE, CLASSES, transform, **MODEL)
    for block in flow.blocks:
        head = block.network.proj_out
        nn.init.normal_(head.weight, std=OUTPUT / head.in_features**0.5)
        nn.init.normal_(head.bias, std=OUTPUT)
    return flow.to(device())
