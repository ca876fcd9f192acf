"""What a flow computes in thousands of short kernels, replayed as CUDA graphs; pure torch."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from flowbench.flow import Flow

WARM = 3
"""Calls before a capture: what they set up, once, may not be captured."""


Result = TypeVar("Result")


class Replayed(Generic[Result]):
    """A function of tensors of one shape, without gradients between calls, as one CUDA graph.

    A call returns the same tensors every time, which the next call fills anew.

    Args:
        function: The function; it may neither read a value on the host nor copy from there.
        inputs: What it is called with at first.
    """

    def __init__(self, function: Callable[..., Result], *inputs: Tensor) -> None:
        self._inputs = [own.clone() for own in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = function(*self._inputs)

    def __call__(self, *given: Tensor) -> Result:
        """Call the function with other values."""
        for own, new in zip(self._inputs, given, strict=True):
            own.copy_(new)
        self._graph.replay()
        return self._outputs


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
