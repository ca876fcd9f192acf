"""From noise back to data: guidance, and the order of solving a block's tokens; pure torch.

Shapes are in the letters of ``flow.py``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flowbench.errors import UsageError
from flowbench.vit import CausalTransformer

LARGEST_GUESS = 1e12


@dataclass(frozen=True)
class Guidance:
    r"""Classifier-free guidance: raw parameters moved away from those of an unguided pass.

    .. math:: params = c + w_t (c - u)

    with c read off the tokens before given the label, u off the same tokens without it. Where there
    are no labels, u may be made worse than c by an attention of another temperature, which guides
    unconditional flows too. Raw parameters may be moved anywhere: transforms are total.

    Args:
        scale: w, at least 0; 0 guides nothing.
        schedule: ``constant``, or ``linear``: from 0 at the first token of a block's order to w at
            its last.
        temperature: Divides the attention's logits in the unguided pass; 1 leaves them.

    Raises:
        UsageError: An argument is out of its range.

    References:
        Ho and Salimans, *Classifier-Free Diffusion Guidance* (2022),
        https://arxiv.org/abs/2207.12598; for flows Zhai et al., *Normalizing Flows are Capable
        Generative Models* (2024), https://arxiv.org/abs/2412.06329
    """

    scale: float
    schedule: Literal["constant", "linear"] = "constant"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise UsageError(f"guidance = {self.scale} is not valid: a number of at least 0")
        if self.schedule not in ("constant", "linear"):
            raise UsageError(
                f"guidance schedule {self.schedule!r} is not valid: constant or linear"
            )
        if not 0 < self.temperature < math.inf:
            raise UsageError(
                f"attention temperature = {self.temperature} is not valid: a number above 0"
            )

    def weights(self, tokens: int) -> Tensor:
        """The weight w_t of each of T tokens; ``[T]``."""
        first = self.scale if self.schedule == "constant" else 0.0
        return torch.linspace(first, self.scale, tokens, dtype=torch.float64)


@dataclass(frozen=True)
class Decoding:
    """In which order the tokens of a block are solved, and how exactly.

    Segments of tokens are solved one after the other. The tokens of a segment start from a guess
    and are all computed at once from each other's last values, over and over. Every such sweep
    makes one more token exact, so as many sweeps as the segment is long are exact, whatever the
    flow; most flows need far fewer. Segments of one token are the usual sequential decoding.

    Args:
        segment: Tokens solved together, at least 1; None takes the whole sequence.
        tolerance: A segment is done when no value of it changes by more than this in a sweep.
        iterations: Most sweeps over a segment, at least 1; None is as many as it is long.

    Raises:
        UsageError: An argument is out of its range.

    References:
        Song et al., *Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving*
        (2021), https://arxiv.org/abs/2002.03629; Liu and Qin, *Accelerate TarFlow Sampling with
        GS-Jacobi Iteration* (2025), https://arxiv.org/abs/2505.12849
    """

    segment: int | None = 1
    tolerance: float = 0.0
    iterations: int | None = None

    def __post_init__(self) -> None:
        for name in ("segment", "iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} = {value} is not valid: an integer of at least 1")
        if not 0 <= self.tolerance < math.inf:
            raise UsageError(f"tolerance = {self.tolerance} is not valid: a number of at least 0")


SEQUENTIAL = Decoding()


class Decoded(NamedTuple):
    """The result of decoding.

    Attributes:
        x: The data.
        sweeps: Sweeps over each segment.
        change: Largest change in the last sweep over a segment that was left before it was exact.
    """

    x: Tensor
    sweeps: tuple[int, ...] = ()
    change: float = 0.0


class Conditioner:
    """A block's network while its input is still being made, guided or not.

    Args:
        network: The network.
        pos_embed: Positions in the order of the tokens; a start token's, if any, first.
        y: Labels.
        batch: B.
        guidance: How to guide; None does not.

    Shape:
        pos_embed ``[T or T + 1, C]``, y ``[B]``
    """

    def __init__(
        self,
        network: CausalTransformer,
        pos_embed: Tensor,
        y: Tensor | None,
        batch: int,
        guidance: Guidance | None,
    ) -> None:
        self.network = network
        self.embedding = (pos_embed + network.embed_class(y)).expand(batch, -1, -1)
        self.weights: Tensor | None = None
        self.temperature: Tensor | None = None
        if guidance and guidance.scale:
            # Both passes are one batch of 2B with one cache: first all guided, then all unguided.
            unguided = (pos_embed + network.embed_class(None)).expand(batch, -1, -1)
            self.embedding = torch.cat([self.embedding, unguided])
            weights = guidance.weights(network.tokens).to(pos_embed)
            # A start token before the patches, where there is one, has no parameters of its own.
            self.weights = F.pad(weights, (len(pos_embed) - network.tokens, 0))[:, None]
            if guidance.temperature != 1:
                temperatures = pos_embed.new_tensor([1.0, guidance.temperature])
                self.temperature = temperatures.repeat_interleave(batch).view(-1, 1, 1, 1)
        self.cache = network.cache(len(self.embedding))

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """Read the raw parameters of tokens t + 1, … off tokens t, …, which enter the cache.

        Shape:
            x ``[B, n, D]`` -> ``[B, n, P·D]``
        """
        if self.weights is None:
            return self.network.step(x, self.embedding, self.cache, t)
        both = self.network.step(x.repeat(2, 1, 1), self.embedding, self.cache, t, self.temperature)
        guided, unguided = both.chunk(2)
        return self.guide(guided, unguided, t + 1)

    def guide(self, guided: Tensor, unguided: Tensor, t: int) -> Tensor:
        """Combine the raw parameters of tokens t, t + 1, …; each ``[B, n, P·D]``."""
        if self.weights is None:
            return guided
        return guided + self.weights[t : t + guided.shape[1]] * (guided - unguided)


def solve(invert: Callable[[Tensor, int], Tensor], z: Tensor, decoding: Decoding) -> Decoded:
    """Find the tokens that follow, each one, from z's and the tokens before it.

    Args:
        invert: Takes tokens t, t + 1, … ``[B, n, D]`` and t, and returns the inverses of tokens
            t + 1, … given these. It remembers the last values that it got for tokens before t.
        z: Gives the first token, which passes unchanged, and the first guesses of the others.
        decoding: In which order, and how exactly.
    """
    tokens = z.shape[1]
    length = min(decoding.segment or tokens, tokens)
    x, sweeps, change = z.clone(), [], 0.0
    for start in range(1, tokens, length):
        end = min(start + length, tokens)
        # A sweep makes its first token exact, so the next sweep begins after it.
        for first in range(start, min(end, start + (decoding.iterations or length))):
            given, alone = x[:, first - 1 : end - 1], first + 1 == end
            solved = invert(given if alone else _tame(given), first - 1)
            # One token alone is exact: no need to wait for the device to know it.
            moved = 0.0 if alone else (solved - x[:, first:end]).abs().max().item()
            x[:, first:end] = solved
            if moved <= decoding.tolerance:
                break
        sweeps.append(first - start + 1)
        change = max(moved, change)
    return Decoded(x, tuple(sweeps), change)


def _tame(given: Tensor) -> Tensor:
    """Bound all tokens but the first, which is known: no guess may overflow.

    It would spoil the tokens before it as well, through an attention weight of 0.
    """
    known, guesses = given.split([1, given.shape[1] - 1], 1)
    guesses = guesses.nan_to_num(0, 0, 0).clamp(-LARGEST_GUESS, LARGEST_GUESS)
    return torch.cat([known, guesses], 1)
