"""TarFlow as its original code runs it: the baseline of the ratios, and no part of any flow here.

Written from the paper. It keeps the original's way of computing, cost and all: eager float32; all T
tokens through the network, whose outputs are shifted after it; a mask given as a tensor; samples
drawn token by token, with keys and values in lists that are joined anew at every step. Its modules
are named as those of ``Flow``, so that an affine flow's weights fit.

References:
    Zhai et al., *Normalizing Flows are Capable Generative Models* (2024),
    https://arxiv.org/abs/2412.06329
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowbench.flow import Flow, patchify, unpatchify

HEAD_DIM = 64
Joined = list[list[Tensor]]
"""For each layer the keys, or the values, of the tokens so far."""


class _Norm(nn.LayerNorm):
    """Computes in float32 whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _Norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        return self._mix(q, k, v, mask)

    def step(self, x: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        q, k, v = self._heads(x)
        keys.append(k)
        values.append(v)
        return self._mix(q, torch.cat(keys, 2), torch.cat(values, 2), None)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        B, T, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, T, 3 * max(1, width // HEAD_DIM), -1)
        return qkv.transpose(1, 2).chunk(3, 1)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _Norm(width)
        self.main = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(self.norm(x))


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = _Attention(width)
        self.mlp = _MLP(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(x, mask)
        return x + self.mlp(x)

    def step(self, x: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        x = x + self.attention.step(x, keys, values)
        return x + self.mlp(x)


class _Network(nn.Module):
    mask: Tensor

    def __init__(self, tokens: int, features: int, classes: int, width: int, layers: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(features, width)
        self.pos_embed = nn.Parameter(0.01 * torch.randn(tokens, width))
        self.class_embed = nn.Parameter(0.01 * torch.randn(classes, 1, width))
        self.layers: Sequence[_Layer] = nn.ModuleList(  # type: ignore[assignment]
            _Layer(width) for _ in range(layers)
        )
        self.proj_out = nn.Linear(width, 2 * features)
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        self.register_buffer("mask", mask, persistent=False)


class _Block(nn.Module):
    def __init__(self, flip: bool, network: _Network) -> None:
        super().__init__()
        self.flip = flip
        self.network = network

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        net = self.network
        x = self._order(x, 1)
        h = net.proj_in(x) + self._order(net.pos_embed, 0) + net.class_embed[y]
        for layer in net.layers:
            h = layer(h, net.mask)
        h = net.proj_out(h)
        a, b = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1).chunk(2, -1)
        z = (x - b) * (-a.float()).exp().type(a.dtype)
        return self._order(z, 1), -a.mean((1, 2))

    def inverse(self, z: Tensor, y: Tensor) -> Tensor:
        net = self.network
        x = self._order(z, 1)
        pos_embed = self._order(net.pos_embed, 0)
        keys: Joined = [[] for _ in net.layers]
        values: Joined = [[] for _ in net.layers]
        for t in range(x.shape[1] - 1):
            h = net.proj_in(x[:, t : t + 1]) + pos_embed[t : t + 1] + net.class_embed[y]
            for layer, own_keys, own_values in zip(net.layers, keys, values, strict=True):
                h = layer.step(h, own_keys, own_values)
            a, b = net.proj_out(h).chunk(2, -1)
            x[:, t + 1] = x[:, t + 1] * a[:, 0].float().exp().type(a.dtype) + b[:, 0]
        return self._order(x, 1)

    def _order(self, x: Tensor, dim: int) -> Tensor:
        return x.flip(dim) if self.flip else x


def noisy(pixels: Tensor) -> Tensor:
    """Add noise by torch's own generator; uint8 ``[...]`` -> float32 ``[...]``."""
    return pixels * (2 / 255) - 1 + 0.1 * torch.randn(pixels.shape, device=pixels.device)


class TarFlow(nn.Module):
    """The paper's flow with its affine transform, of images with labels.

    Args:
        shape: Channels, height and width of the images.
        classes: Number of classes.
        blocks: Flow blocks.
        layers: Transformer layers in each block.
        width: Channels of the transformer.
        patch: Side of the patches in pixels.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        blocks: int,
        layers: int,
        width: int,
        patch: int,
    ) -> None:
        super().__init__()
        channels, height, across = shape
        self.shape, self.patch = shape, patch
        tokens, features = (height // patch) * (across // patch), channels * patch * patch
        self.blocks: Sequence[_Block] = nn.ModuleList(  # type: ignore[assignment]
            _Block(i % 2 == 1, _Network(tokens, features, classes, width, layers))
            for i in range(blocks)
        )

    @classmethod
    def of(cls, flow: Flow) -> Self:
        """Make one that computes what an affine flow does, with a copy of its weights."""
        network = flow.blocks[0].network
        sizes = len(flow.blocks), len(network.layers), network.width, flow.patch
        made = cls(flow.shape, flow.classes, *sizes).to(network.pos_embed)
        made.load_state_dict(flow.state_dict())
        return made

    def forward(self, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to noise; the log-determinants are means over the dimensions, ``[B]``."""
        x = patchify(images, self.patch)
        log_det = torch.zeros((), device=x.device)
        for block in self.blocks:
            x, own = block(x, y)
            log_det = log_det + own
        return x, log_det

    @torch.no_grad()
    def inverse(self, z: Tensor, y: Tensor) -> Tensor:
        """Map noise to images, token by token; z stays as it is."""
        x = z.clone()
        for block in reversed(self.blocks):
            x = block.inverse(x, y)
        return unpatchify(x, self.shape, self.patch)
