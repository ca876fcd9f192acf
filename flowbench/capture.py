"""A flow's passes forward and backward, replayed as CUDA graphs; pure torch."""

import torch
from torch import Tensor, nn

from flowbench.flow import Flow


class Captured(nn.Module):
    """A flow in training whose passes are captured for images of one shape.

    A step of a flow is thousands of short kernels, and the host needs longer to start them than a
    GPU to run them. A graph starts them all at once; it reads and writes always the same memory. So
    the weights have to stay where they are, and the gradients of one step have to be used up before
    the next one: they cannot be accumulated. The weights are the flow's own.

    Args:
        flow: The flow, on an NVIDIA GPU.
        images: Images of that shape; autocast is captured as it is now.
        y: Their labels.

    Shape:
        images ``[B, channels, height, width]``, y ``[B]``
    """

    def __init__(self, flow: Flow, images: Tensor, y: Tensor) -> None:
        super().__init__()
        self.flow = flow
        device = images.device.type
        # A weight cast to bfloat16 once and kept would stay as it was at the capture.
        with torch.autocast(
            device,
            torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        ):
            torch.cuda.make_graphed_callables(self, (images.clone(), y.clone()))

    def forward(self, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to noise, as the flow does."""
        found: tuple[Tensor, Tensor] = self.flow(images, y)
        return found
