"""The causal vision transformer inside a flow block, with an explicit KV cache; pure torch.

Shapes are in the letters of ``flow.py``.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowbench.errors import UsageError
from flowbench.kernels import layer as fused
from flowbench.kernels.build import only
from flowbench.kernels.step import Packed, Sizes, fits, pack

ACTIVATIONS = {"gelu": "none", "gelu-tanh": "tanh"}
HEAD_DIM = 64


def default_heads(width: int) -> int:
    """One head to every 64 channels, at least one."""
    return max(1, width // HEAD_DIM)


class Cache(NamedTuple):
    """The state of sampling: made by the sampler, passed down, then dropped.

    Attributes:
        layers: Keys and values of the tokens so far, ``[2, B, H, T, C/H]`` for each layer.
        packed: The network's weights in the layout of the single-token kernel, where it applies.
    """

    layers: tuple[Tensor, ...]
    packed: Packed | None


class Attention(nn.Module):
    """Pre-norm causal multi-head self-attention."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        norms = (nn.RMSNorm(width // heads, eps=1e-6) for _ in range(2 if qk_norm else 0))
        self.qk_norm = nn.ModuleList(norms)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to this token and the earlier ones; x ``[B, T, C]`` -> ``[B, T, C]``."""
        q, k, v = self._qkv(x).unbind(0)
        return self._mix(q, k, v)

    def step(self, x: Tensor, keys_values: Tensor, t: int, temperature: Tensor | None) -> Tensor:
        """Attend from tokens t, t + 1, … to the cached ones and each other; ``[B, n, C]``."""
        qkv = self._qkv(x)
        q = qkv[0] if temperature is None else qkv[0] / temperature
        end = t + x.shape[1]
        keys_values[:, :, :, t:end] = qkv[1:]
        k, v = keys_values[:, :, :, :end]
        return self._mix(q, k, v)

    def _qkv(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, H, C/H]
        qkv = qkv.permute(2, 0, 3, 1, 4)
        if len(self.qk_norm) == 0:
            return qkv
        (norm_q, norm_k), (q, k, v) = self.qk_norm, qkv
        return torch.stack([norm_q(q).to(v.dtype), norm_k(k).to(v.dtype), v])

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[-2]
        attention = _fused_attention if q.is_cuda or n == 1 else _short_attention
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


def _fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the last n of T tokens; q ``[B, H, n, C/H]``, k, v ``[B, H, T, C/H]``."""
    n, T = q.shape[-2], k.shape[-2]
    seen = None if n in (1, T) else q.new_ones((n, T), dtype=torch.bool).tril(T - n)
    return F.scaled_dot_product_attention(q, k, v, seen, is_causal=n == T)


def _short_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by plain products: at n = T ≈ 50 on a CPU twice as fast as the fused kernel."""
    n, T = q.shape[-2], k.shape[-2]
    mask = q.new_full((n, T), float("-inf")).triu(T - n + 1)
    scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1).to(v.dtype), v.flatten(0, 1)).unflatten(0, q.shape[:2])


class MLP(nn.Module):
    """Pre-norm two-layer perceptron."""

    def __init__(self, width: int, expansion: int, activation: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.main = nn.Sequential(
            nn.Linear(width, expansion * width),
            nn.GELU(approximate=ACTIVATIONS[activation]),
            nn.Linear(expansion * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform every token by itself; x ``[..., C]`` -> ``[..., C]``."""
        return self.main(self.norm(x))


class Layer(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(
        self, width: int, heads: int, expansion: int, activation: str, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.kind = fused.Kind(heads, expansion * width, ACTIVATIONS[activation] == "tanh")
        self.attention = Attention(width, heads, qk_norm)
        self.mlp = MLP(width, expansion, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Run over all tokens at once; x ``[B, T, C]`` -> ``[B, T, C]``."""
        maps = self.maps()
        if self._fits(x, maps):
            return fused.layer(x, self.kind, maps, self._without_kernels)
        return self.plain(x)

    def has_kernel(self, x: Tensor) -> bool:
        """Return whether the hand-written kernel runs this layer over such tokens."""
        return self._fits(x, self.maps())

    def _fits(self, x: Tensor, maps: list[tuple[nn.LayerNorm | None, nn.Linear]]) -> bool:
        known = len(self.attention.qk_norm) == 0 and fused.fits(x, self.kind, maps)
        return known and not _watched(self)

    def plain(self, x: Tensor) -> Tensor:
        """The same by torch's own operations."""
        x = x + self.attention(x)
        return x + self.mlp(x)

    def _without_kernels(self, x: Tensor, *parameters: Tensor) -> Tensor:
        names = (name for name, _ in self.named_parameters())
        with only():
            own = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(self, own, (x,))

    def step(self, x: Tensor, keys_values: Tensor, t: int, temperature: Tensor | None) -> Tensor:
        """Tokens t, t + 1, … alone; x ``[B, n, C]`` -> ``[B, n, C]``."""
        x = x + self.attention.step(x, keys_values, t, temperature)
        return x + self.mlp(x)

    def maps(self) -> list[tuple[nn.LayerNorm | None, nn.Linear]]:
        """Its linear maps in their order, each with the norm before it, if any."""
        attention = self.attention
        into, out = (each for each in self.mlp.main if isinstance(each, nn.Linear))
        return [
            (attention.norm, attention.qkv),
            (None, attention.proj),
            (self.mlp.norm, into),
            (None, out),
        ]


class CausalTransformer(nn.Module):
    """Patches in, one vector of raw outputs per patch out; output t depends on inputs 0…t only.

    Linear patch embedding plus learned positions and, where there are classes, a learned class
    embedding; then the layers and a linear head, which starts at zero so that a new flow is the
    identity.

    Args:
        tokens: T.
        features: D.
        outputs: Numbers that the head emits for each token.
        width: C.
        layers: Transformer layers.
        heads: H; None gives one to every 64 channels.
        classes: Number of classes; 0 for an unconditional model.
        expansion: Hidden channels of the MLP over C.
        activation: ``gelu`` (exact) or ``gelu-tanh``.
        qk_norm: Normalise queries and keys by their root mean square, with learned gains.
        final_norm: Normalise the tokens before the head.

    Raises:
        UsageError: H does not divide C, or the activation is unknown.

    References:
        Zhai et al., *Normalizing Flows are Capable Generative Models* (2024),
        https://arxiv.org/abs/2412.06329
    """

    def __init__(
        self,
        tokens: int,
        features: int,
        outputs: int,
        width: int,
        layers: int,
        heads: int | None = None,
        classes: int = 0,
        expansion: int = 4,
        activation: str = "gelu",
        qk_norm: bool = False,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        heads = default_heads(width) if heads is None else heads
        if heads < 1 or width % heads:
            raise UsageError(f"width {width} is not divisible by its {heads} heads")
        if activation not in ACTIVATIONS:
            raise UsageError(
                f"unknown activation {activation!r}: valid are {', '.join(ACTIVATIONS)}"
            )
        self.tokens, self.width, self.heads = tokens, width, heads
        self.expansion, self.activation = expansion, activation
        self.proj_in = nn.Linear(features, width)
        self.pos_embed = nn.Parameter(0.01 * torch.randn(tokens, width))
        self.class_embed = nn.Parameter(0.01 * torch.randn(classes, 1, width)) if classes else None
        self.layers: Sequence[Layer] = nn.ModuleList(  # type: ignore[assignment]
            Layer(width, heads, expansion, activation, qk_norm) for _ in range(layers)
        )
        self.final_norm = nn.LayerNorm(width) if final_norm else None
        self.proj_out = nn.Linear(width, outputs)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def embed_class(self, y: Tensor | None) -> Tensor | float:
        """Embed labels ``[B]`` to ``[B, 1, C]``; −1, or no labels at all, is the classes' mean."""
        return 0.0 if self.class_embed is None else of_labels(self.class_embed.flatten(1), y)

    def forward(self, x: Tensor, pos_embed: Tensor, y: Tensor | None = None) -> Tensor:
        """Run over up to T tokens at once.

        Shape:
            x ``[B, ≤T, D]``, pos_embed ``[≤T, C]`` in the order of x, y ``[B]``
            -> ``[B, ≤T, outputs]``
        """
        with _exactly(x):
            x = self.proj_in(x) + (pos_embed + self.embed_class(y))
        for layer in self.layers:
            x = layer(x)
        # The head's product the other way round: each of its outputs is then contiguous over the
        # tokens, as elementwise transforms want their parameters, without a transposing copy.
        head = self.proj_out
        if self.final_norm:
            x = self.final_norm(x)
        with _exactly(x):
            rows = x.to(head.weight.dtype).flatten(0, 1)
            raw = torch.addmm(head.bias[:, None], head.weight, rows.t())
        return raw.unflatten(1, x.shape[:2]).permute(1, 2, 0)

    def cache(self, batch: int) -> Cache:
        """Make room for the keys and values of B sequences."""
        weight = self.proj_in.weight
        auto = torch.is_autocast_enabled(weight.device.type)
        dtype = torch.get_autocast_dtype(weight.device.type) if auto else weight.dtype
        size = (len(self.layers), 2, batch, self.heads, self.tokens, self.width // self.heads)
        packed = None if auto else self._packed()
        return Cache(weight.new_empty(size, dtype=dtype).unbind(0), packed)

    def _packed(self) -> Packed | None:
        first, last = self.proj_in, self.proj_out
        sizes = Sizes(
            features=first.in_features,
            width=self.width,
            heads=self.heads,
            tokens=self.tokens,
            layers=len(self.layers),
            hidden=self.expansion * self.width,
            outputs=last.out_features,
            tanh=ACTIVATIONS[self.activation] == "tanh",
            eps=self.layers[0].attention.norm.eps if len(self.layers) else 0.0,
        )
        normed = self.final_norm or any(layer.attention.qk_norm for layer in self.layers)
        if normed or not fits(sizes, first.weight) or _watched(self):
            return None
        return pack(sizes, first, [layer.maps() for layer in self.layers], last)

    def step(
        self,
        x: Tensor,
        embedding: Tensor,
        cache: Cache,
        t: int,
        temperature: Tensor | None = None,
    ) -> Tensor:
        """Run over tokens t, t + 1, …, and write their keys and values into the cache.

        Args:
            x: The next tokens; those before t have been here already.
            embedding: What is added to every token: its position's embedding and its class's.
            cache: Of this network.
            t: Where the first token stands.
            temperature: Divides the attention's logits, where it is not 1.

        Shape:
            x ``[B, n, D]``, embedding ``[B, T, C]`` in the order of the tokens, temperature
            ``[B, 1, 1, 1]`` -> ``[B, n, outputs]``
        """
        alone = temperature is None and x.shape[1] == 1
        if cache.packed and alone and cache.packed.takes(x, embedding):
            return cache.packed.step(x[:, 0], embedding[:, t], cache.layers, t)[:, None]
        with _exactly(x):
            x = self.proj_in(x) + embedding[:, t : t + x.shape[1]]
        for layer, keys_values in zip(self.layers, cache.layers, strict=True):
            x = layer.step(x, keys_values, t, temperature)
        if self.final_norm:
            x = self.final_norm(x)
        with _exactly(x):
            return self.proj_out(x.to(self.proj_out.weight.dtype))


def of_labels(table: Tensor, y: Tensor | None) -> Tensor:
    """Look up labels in a table with a row for every class; −1, or no labels, is the rows' mean.

    Shape:
        table ``[classes, N]``, y ``[B]`` -> ``[B, 1, N]``, or ``[1, 1, N]`` without labels
    """
    mean = table.mean(0, keepdim=True)
    if y is None:
        return mean[None]
    # Not by an index: on a CPU that leaves the order of adding up gradients to the threads.
    return F.embedding(y.where(y >= 0, len(table)), torch.cat([table, mean]))[:, None]


def _watched(module: nn.Module) -> bool:
    """Whether somebody's hooks follow the parts of a module, which a kernel would not call."""
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        for part in module.modules()
        if part is not module
    )


def _exactly(x: Tensor) -> AbstractContextManager[object]:
    """Disable autocast for inputs and outputs: pixels, noise, and parameters of the transform.

    Near 1 bfloat16 is as coarse as the noise of dequantisation, which a shift has to resolve.
    """
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
