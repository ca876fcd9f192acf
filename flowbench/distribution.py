"""Flows and elementwise transforms as ``torch.distributions`` has them."""

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from flowbench.transforms import Elementwise


class Density(Protocol):
    """What a distribution needs of a flow."""

    shape: tuple[int, int, int]

    def log_prob(self, images: Tensor, y: Tensor | None = None) -> Tensor:
        """Log-density of images ``[B, C, H, W]`` given labels ``[B]``, in nats."""
        ...

    def sample(self, y: Tensor) -> Tensor:
        """Draw an image for every label."""
        ...


class FlowDistribution(Distribution):
    """The density of a flow's images.

    Args:
        flow: The flow, on any device; gradients reach its parameters through ``log_prob``.
        y: Labels, int64; −1 is none. None: a single distribution without a label.

    Shape:
        y ``[...]``, the batch shape; events ``[C, H, W]``

    Example:
        >>> from flowbench.flow import Flow
        >>> flow = Flow((1, 4, 4), transform="affine", patch=2, blocks=1, layers=1, width=8)
        >>> normal = flow.distribution()
        >>> normal.log_prob(torch.zeros(3, 1, 4, 4)).shape, normal.sample((2,)).shape
        (torch.Size([3]), torch.Size([2, 1, 4, 4]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, flow: Density, y: Tensor | None = None) -> None:
        self.flow = flow
        self.y = torch.tensor(-1) if y is None else y
        super().__init__(self.y.shape, torch.Size(flow.shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All images of real numbers."""
        return constraints.independent(constraints.real, 3)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of images, in nats.

        Shape:
            ``[..., C, H, W]``, broadcast against the labels -> ``[...]``
        """
        shape = torch.broadcast_shapes(value.shape[:-3], self.batch_shape)
        images = value.expand(*shape, *self.event_shape).reshape(-1, *self.event_shape)
        y = self.y.to(value.device).expand(shape).reshape(-1)
        return self.flow.log_prob(images, y).reshape(shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw images from torch's global random state, without gradients.

        Shape:
            -> ``[*sample_shape, *batch_shape, C, H, W]``
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.flow.sample(self.y.expand(shape).reshape(-1)).reshape(*shape, *self.event_shape)


class Univariate(Transform):
    """An elementwise transform with its parameters: data to noise, as other flows can use it.

    zuko takes it as the univariate function of its autoregressive and coupling flows.

    Args:
        transform: Such as ``parse("rqs-8")``.
        params: Raw parameters of every feature; zeros are the identity.

    Shape:
        params ``[..., P]``, acts on ``[...]``

    Example:
        >>> from flowbench.transforms import parse
        >>> spline = Univariate(parse("rqs-8"), torch.zeros(3, parse("rqs-8").num_params))
        >>> spline(torch.tensor([-1.0, 0.0, 9.0])).tolist()
        [-1.0, 0.0, 9.0]
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, transform: Elementwise, params: Tensor, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.transform = transform
        self.params = params

    def with_cache(self, cache_size: int = 1) -> "Univariate":
        """Return the same transform with another size of the cache."""
        return Univariate(self.transform, self.params, cache_size)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise, with the log-slope; both ``[...]``."""
        return self._apply(self.transform.forward, x)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-slope at x ``[...]``."""
        return self.call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._apply(self.transform.inverse, y)[0]

    def _apply(self, function: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        # A last dimension of one feature: the parameters may have no other.
        value, log_slope = function(x.unsqueeze(-1), self.params.unsqueeze(-2))
        return value.squeeze(-1), log_slope.squeeze(-1)
