"""The transformer autoregressive flow; pure torch.

Legend: B batch, T tokens (patches), D features of a token, C width, H heads, P raw parameters of a
feature, K bins. Everywhere x is data, z noise; ``log_slope`` is elementwise log dz/dx ``[B, T, D]``
and ``log_det`` its sum over a sample ``[B]``, in nats.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowbench.decoding import SEQUENTIAL, Conditioner, Decoded, Decoding, Guidance, solve
from flowbench.distribution import FlowDistribution
from flowbench.errors import UsageError
from flowbench.orders import RANDOM, Order, path
from flowbench.transforms import parse
from flowbench.transforms.base import Elementwise, kernels
from flowbench.vit import CausalTransformer, of_labels


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images ``[B, channels, height, width]`` into ``[B, T, D]``, D = channels·patch²."""
    B, channels, height, width = images.shape
    tiles = images.view(B, channels, height // patch, patch, width // patch, patch)
    tokens = tiles.shape[2] * tiles.shape[4]  # not −1, which an empty batch does not tell
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(B, tokens, channels * patch * patch)


def unpatchify(tokens: Tensor, shape: tuple[int, int, int], patch: int) -> Tensor:
    """Undo ``patchify``: ``[B, T, D]`` -> ``[B, channels, height, width]``."""
    channels, height, width = shape
    tiles = tokens.view(len(tokens), height // patch, width // patch, channels, patch, patch)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), *shape)


class Step(NamedTuple):
    """The step of one block on a batch: its input and parameters, its output and log-slope."""

    x: Tensor
    params: Tensor
    z: Tensor
    log_slope: Tensor


STARTS = ("identity", "learned", "token")


class AutoregressiveBlock(nn.Module):
    """One flow step: every patch is transformed with parameters computed from earlier patches.

    The network's outputs are shifted by one patch, so none is left for the first patch of the
    order. ``start`` says where its raw parameters come from:

    - ``identity``: they are zero, and the patch passes unchanged, as TarFlow has it;
    - ``learned``: they are parameters of their own, for each class, which start at zero;
    - ``token``: the network reads them off a start token before the sequence, as in STARFlow.

    Args:
        transform: The elementwise transform.
        order: Order in which the block takes the patches.
        tokens: T.
        features: D.
        start: ``identity``, ``learned`` or ``token``.
        clip: c: raw parameters r become c·tanh(r/c); None leaves them.
        classes: Number of classes; 0 for an unconditional block.
        network: Further arguments of ``CausalTransformer``.

    Raises:
        UsageError: The start is none of these, or c is not positive.

    References:
        Gu et al., *STARFlow* (2025), https://arxiv.org/abs/2506.06276, has the start token and,
        with c = 4, the clip.
    """

    def __init__(
        self,
        transform: Elementwise,
        order: Order,
        tokens: int,
        features: int,
        start: str = "identity",
        clip: float | None = None,
        classes: int = 0,
        **network: Any,
    ) -> None:
        super().__init__()
        if start not in STARTS:
            raise UsageError(f"model.start = {start!r} is not valid: {', '.join(STARTS)}")
        if clip is not None and not 0 < clip < math.inf:
            raise UsageError(f"model.clip = {clip!r} is not valid: a number above 0, or null")
        self.transform = transform
        self.order = order
        self.start = start
        self.clip = clip
        outputs = transform.num_params * features
        self.network = CausalTransformer(tokens, features, outputs, classes=classes, **network)
        # Zeros, which draw nothing: flows of one seed differ in their start alone.
        if start == "learned":
            self.first = nn.Parameter(torch.zeros(max(1, classes), outputs))
        if start == "token":
            self.token = nn.Parameter(torch.zeros(1, self.network.width))

    def trace(self, x: Tensor, y: Tensor | None = None) -> Step:
        """Map data to noise and keep the intermediate results, in the block's own order.

        Shape:
            x ``[B, T, D]``, y ``[B]`` -> x, z, log_slope ``[B, T, D]``, params ``[B, T, D, P]``
        """
        x = self.order(x, 1)
        params, z, log_slope = self._transform(x, y)
        unchanged = x.shape[1] - log_slope.shape[1]
        pad = nn.functional.pad
        params = pad(params, (0, 0, 0, 0, unchanged, 0))
        return Step(x, params, z, pad(log_slope, (0, 0, unchanged, 0)))

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise; x ``[B, T, D]``, y ``[B]`` -> z ``[B, T, D]``, log_det ``[B]``."""
        _, z, log_slope = self._transform(self.order(x, 1), y)
        return self.order.undo(z, 1), log_slope.sum((1, 2))

    def _transform(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the params and log-slopes of the patches that are transformed, and all of z."""
        alone = 0 if self.start == "token" else 1
        first, rest = x[:, :alone], x[:, alone:]
        # The last patch conditions nothing, so the network never sees it.
        given = self._after_start(x)[:, :-1]
        params = self._params(self.network(given, self._positions()[: given.shape[1]], y))
        # In memory like the network's outputs: tokens innermost (see flowbench.kernels).
        rest = rest.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        rest, log_slope = self.transform.forward(rest, params)
        if self.start == "learned":
            own = self._params(self._first(y)).expand(len(x), -1, -1, -1)
            first, slope = self.transform.forward(first, own)
            params, log_slope = torch.cat([own, params], 1), torch.cat([slope, log_slope], 1)
        return params, torch.cat([first, rest], 1), log_slope

    def _after_start(self, x: Tensor) -> Tensor:
        """Put the start token, where there is one, before a sequence ``[B, T, D]``.

        It is a token of zeros with a learned position of its own.
        """
        return nn.functional.pad(x, (0, 0, 1, 0)) if self.start == "token" else x

    def _positions(self) -> Tensor:
        """What tells the tokens of such a sequence apart, in the block's order; ``[≥T, C]``."""
        own = self.order(self.network.pos_embed, 0)
        return torch.cat([self.token, own]) if self.start == "token" else own

    def _first(self, y: Tensor | None) -> Tensor:
        """Raw parameters of the first patch where they are learned; ``[B or 1, 1, P·D]``."""
        return of_labels(self.first, y if self.network.class_embed is not None else None)

    @torch.no_grad()
    def inverse(
        self,
        z: Tensor,
        y: Tensor | None = None,
        guidance: Guidance | None = None,
        decoding: Decoding = SEQUENTIAL,
    ) -> Decoded:
        """Map noise to data, without gradients.

        Shape:
            z ``[B, T, D]``, y ``[B]`` -> x ``[B, T, D]`` and the sweeps it took
        """
        z = self._after_start(self.order(z, 1))
        conditioner = Conditioner(self.network, self._positions(), y, len(z), guidance)
        if self.start == "learned":
            raw = conditioner.guide(self._first(y), self._first(None), 0)
            first = self.transform.inverse(z[:, :1], self._params(raw))[0]
            z = torch.cat([first, z[:, 1:]], 1)

        def invert(x: Tensor, t: int) -> Tensor:
            params = self._params(conditioner(x, t))
            return self.transform.inverse(z[:, t + 1 : t + 1 + x.shape[1]], params)[0]

        decoded = solve(invert, z, decoding)
        return decoded._replace(x=self.order.undo(decoded.x[:, -self.network.tokens :], 1))

    def _params(self, raw: Tensor) -> Tensor:
        """Read ``[B, T, P·D]``, all features' first parameter first, as ``[B, T, D, P]``."""
        if self.clip:
            raw = self.clip * torch.tanh(raw / self.clip)
        return raw.unflatten(-1, (self.transform.num_params, -1)).transpose(-1, -2)


class Flow(nn.Module):
    """A normalizing flow over images: blocks of masked vision transformers.

    Args:
        shape: Channels, height and width of the images.
        classes: Number of classes; 0 for an unconditional flow.
        transform: Name of the elementwise transform, as ``flowbench.transforms.parse`` reads it.
        blocks: Flow blocks.
        layers: Transformer layers in each block: one number for all, or one for each of them.
        width: C.
        heads: H; None gives one to every 64 channels.
        patch: Side of the patches in pixels.
        expansion: Hidden channels of the MLP over C.
        activation: ``gelu`` (exact) or ``gelu-tanh``.
        start: What transforms the first patch of a block: ``identity``, ``learned`` or ``token``
            (see ``AutoregressiveBlock``).
        order: Orders in which the blocks take the patches (see ``flowbench.orders.path``).
        clip: c: raw parameters r become c·tanh(r/c); None leaves them.
        qk_norm: Normalise queries and keys by their root mean square, with learned gains.
        final_norm: Normalise the tokens before the head.

    Attributes:
        recompute: Keep what enters each block only, and compute the rest again in the backward
            pass.

    Raises:
        UsageError: The patch does not divide the image, or an argument has no meaning.

    Example:
        >>> flow = Flow((1, 28, 28), classes=10, transform="rqs-8", blocks=2, layers=1, width=64)
        >>> z, log_det = flow(torch.rand(3, 1, 28, 28), torch.tensor([0, 1, -1]))
        >>> z.shape, log_det.shape
        (torch.Size([3, 49, 16]), torch.Size([3]))

    References:
        Zhai et al., *Normalizing Flows are Capable Generative Models* (2024),
        https://arxiv.org/abs/2412.06329
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int = 0,
        transform: str = "affine",
        blocks: int = 8,
        layers: int | Sequence[int] = 4,
        width: int = 128,
        heads: int | None = None,
        patch: int = 4,
        expansion: int = 4,
        activation: str = "gelu",
        start: str = "identity",
        order: str = "flip",
        clip: float | None = None,
        qk_norm: bool = False,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        channels, height, across = shape
        if patch < 1 or height % patch or across % patch:
            common = math.gcd(height, across)
            valid = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            raise UsageError(
                f"patch {patch} does not divide images of {height}x{across}: valid are {valid}"
            )
        self.shape, self.classes, self.patch = shape, classes, patch
        rows, columns = height // patch, across // patch
        self.tokens = rows * columns
        self.features = channels * patch * patch
        self.dims = self.tokens * self.features
        elementwise = parse(transform)
        self.recompute = False
        depths = [layers] * blocks if isinstance(layers, int) else list(layers)
        if len(depths) != blocks:
            raise UsageError(f"model.layers = {depths} is not valid: {blocks} numbers, one a block")
        self.blocks: Sequence[AutoregressiveBlock] = nn.ModuleList(  # type: ignore[assignment]
            AutoregressiveBlock(
                elementwise,
                Order(path(order, i, rows, columns), saved=RANDOM in order),
                self.tokens,
                self.features,
                start,
                clip,
                classes,
                width=width,
                layers=depth,
                heads=heads,
                expansion=expansion,
                activation=activation,
                qk_norm=qk_norm,
                final_norm=final_norm,
            )
            for i, depth in enumerate(depths)
        )

    def kernels(self, compiled: bool = False, device: torch.device | None = None) -> str:
        """Name the hand-written kernels of a training step, such as ``layer rqs``; or ``none``.

        Args:
            compiled: Whether torch compiles the flow, which replaces the layers' kernel.
            device: Where it trains; None for where it is.
        """
        network = self.blocks[0].network
        x = network.pos_embed.new_empty(1, 1, network.width, device=device)
        fused = not compiled and any(layer.has_kernel(x) for layer in network.layers)
        names = (["layer"] if fused else []) + [*kernels(self.blocks[0].transform, x)]
        return " ".join(names) or "none"

    def forward(
        self, images: Tensor, y: Tensor | None = None, latents: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map images to noise.

        Args:
            images: The images.
            y: Their labels.
            latents: Gets, where it is given, what each block but the last gives, ``[B, T, D]``.

        Shape:
            images ``[B, channels, height, width]``, y ``[B]`` -> z ``[B, T, D]``, log_det ``[B]``
        """
        x = patchify(images, self.patch)
        log_det = x.new_zeros(len(x), dtype=torch.float32)
        again = self.recompute and torch.is_grad_enabled()
        for block in self.blocks:
            step = partial(checkpoint, block, use_reentrant=False) if again else block
            x, block_log_det = step(x, y)
            log_det = log_det + block_log_det
            if latents is not None and len(latents) < len(self.blocks) - 1:
                latents.append(x)
        return x, log_det

    def trace(self, images: Tensor, y: Tensor | None = None) -> Iterator[Step]:
        """Yield the step of each block, first to last: for diagnosis, not training."""
        x = patchify(images, self.patch)
        for block in self.blocks:
            step = block.trace(x, y)
            yield step
            x = block.order.undo(step.z, 1)

    def log_prob(self, images: Tensor, y: Tensor | None = None) -> Tensor:
        """Log-density of images given their labels, in nats; ``[B]``."""
        z, log_det = self(images, y)
        return log_det - 0.5 * (z.float().square().sum((1, 2)) + self.dims * math.log(2 * math.pi))

    def distribution(self, y: Tensor | None = None) -> FlowDistribution:
        """Return the density of images with these labels as a distribution of torch's.

        Shape:
            y ``[...]``, the batch shape -> events ``[channels, height, width]``
        """
        return FlowDistribution(self, y)

    def inverse(
        self,
        z: Tensor,
        y: Tensor | None = None,
        guidance: Guidance | None = None,
        decoding: Decoding = SEQUENTIAL,
    ) -> Tensor:
        """Map noise to images, without gradients; unguided it undoes ``forward``.

        Shape:
            z ``[B, T, D]``, y ``[B]`` -> images ``[B, channels, height, width]``
        """
        for stage in self.decode(z, y, guidance, decoding):
            images = stage.x
        return images

    def decode(
        self,
        z: Tensor,
        y: Tensor | None = None,
        guidance: Guidance | None = None,
        decoding: Decoding = SEQUENTIAL,
    ) -> Iterator[Decoded]:
        """Yield the noise, then the result of inverting each block, the last block first.

        Shape:
            z ``[B, T, D]``, y ``[B]`` -> x ``[B, channels, height, width]`` and the sweeps it took
        """
        stage = Decoded(z)
        for block in [*reversed(self.blocks), None]:
            yield stage._replace(x=unpatchify(stage.x, self.shape, self.patch))
            if block:
                stage = block.inverse(stage.x, y, guidance, decoding)

    def sample(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw an image for every label (−1: no class) from the flow's density.

        The noise is drawn on the CPU, so a seed gives the same images on every device.

        Shape:
            y ``[B]`` -> images ``[B, channels, height, width]``
        """
        z = torch.randn(len(y), self.tokens, self.features, generator=generator)
        return self.inverse(z.to(self.blocks[0].network.pos_embed), y)
