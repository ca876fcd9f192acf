"""TarFlow with its affine transform, written plainly from the paper: an oracle for ``Flow``.

Zhai et al., *Normalizing Flows are Capable Generative Models* (2024), arXiv 2412.06329. It shares
with ``flowbench`` only the names of the weights, and takes the slow way everywhere: one head and
one query at a time, a mask written out, and an inverse that runs the whole network for each token.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from flowbench.flow import Flow

HEAD_DIM = 64


def wake(flow: Flow, scale: float = 0.2) -> Flow:
    """Move every weight of a new flow, so that it is no longer the identity and nothing is 0 or 1.

    The heads get outputs of about ``scale``.
    """
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for block in flow.blocks:
            head = block.network.proj_out
            head.weight.copy_(torch.randn_like(head.weight) * scale / head.in_features**0.5)
            head.bias.copy_(torch.randn_like(head.bias) * scale)
    return flow


class PlainFlow:
    """The model of the paper over the weights of a flow, which stay leaves for gradients."""

    def __init__(self, weights: dict[str, Tensor], patch: int) -> None:
        self.weights = weights
        self.patch = patch
        self.blocks = 1 + max(int(name.split(".")[1]) for name in weights)
        self.layers = 1 + max(
            int(name.split(".")[4]) for name in weights if name.split(".")[3] == "layers"
        )

    def forward(self, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        log_det = 0.0
        for i in range(self.blocks):
            x = self.reverse(x, i)
            a, b = self.parameters(x, y, i)
            x = (x - b) * torch.exp(-a)
            log_det = log_det - a.sum((1, 2))
            x = self.reverse(x, i)
        return x, log_det

    def inverse(self, z: Tensor, y: Tensor, size: tuple[int, int]) -> Tensor:
        for i in reversed(range(self.blocks)):
            z = self.reverse(z, i)
            x = torch.zeros_like(z)
            for t in range(z.shape[1]):
                a, b = self.parameters(x, y, i)
                x[:, t] = z[:, t] * torch.exp(a[:, t]) + b[:, t]
            z = self.reverse(x, i)
        return F.fold(z.transpose(1, 2), size, self.patch, stride=self.patch)

    def reverse(self, x: Tensor, i: int) -> Tensor:
        return x[:, torch.arange(x.shape[1] - 1, -1, -1)] if i % 2 == 1 else x

    def parameters(self, x: Tensor, y: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """a and b of every token, each from the tokens before it; the first has none and gets 0."""
        out = self.network(x, y, i)
        shifted = torch.cat([torch.zeros_like(out[:, :1]), out[:, :-1]], 1)
        features = x.shape[2]
        return shifted[:, :, :features], shifted[:, :, features:]

    def network(self, x: Tensor, y: Tensor, i: int) -> Tensor:
        w = {
            name.removeprefix(f"blocks.{i}.network."): weight
            for name, weight in self.weights.items()
            if name.startswith(f"blocks.{i}.network.")
        }
        classes = w["class_embed"][:, 0]
        embedded = [classes.sum(0) / len(classes) if n == -1 else classes[n] for n in y.tolist()]
        h = x @ w["proj_in.weight"].T + w["proj_in.bias"]
        h = h + self.reverse(w["pos_embed"][None], i) + torch.stack(embedded)[:, None]
        for j in range(self.layers):
            own = {
                name.removeprefix(f"layers.{j}."): weight
                for name, weight in w.items()
                if name.startswith(f"layers.{j}.")
            }
            h = h + self.attention(h, own)
            h = h + self.mlp(h, own)
        return h @ w["proj_out.weight"].T + w["proj_out.bias"]

    def attention(self, h: Tensor, w: dict[str, Tensor]) -> Tensor:
        T, width = h.shape[1:]
        n = layer_norm(h, w["attention.norm.weight"], w["attention.norm.bias"])
        matrices = w["attention.qkv.weight"].split(width)
        biases = w["attention.qkv.bias"].split(width)
        query, key, value = (n @ m.T + b for m, b in zip(matrices, biases, strict=True))
        allowed = torch.arange(T)[:, None] >= torch.arange(T)[None, :]
        heads = []
        for c in range(0, width, HEAD_DIM):
            q, k, v = (part[:, :, c : c + HEAD_DIM] for part in (query, key, value))
            scores = torch.einsum("bqc,bkc->bqk", q, k) / HEAD_DIM**0.5
            scores = torch.where(allowed, torch.exp(scores), 0.0)
            heads.append(scores / scores.sum(-1, keepdim=True) @ v)
        return torch.cat(heads, -1) @ w["attention.proj.weight"].T + w["attention.proj.bias"]

    def mlp(self, h: Tensor, w: dict[str, Tensor]) -> Tensor:
        n = layer_norm(h, w["mlp.norm.weight"], w["mlp.norm.bias"])
        n = n @ w["mlp.main.0.weight"].T + w["mlp.main.0.bias"]
        n = n * 0.5 * (1 + torch.erf(n / 2**0.5))
        return n @ w["mlp.main.2.weight"].T + w["mlp.main.2.bias"]


def layer_norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + bias
