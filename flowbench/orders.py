"""Orders in which the blocks run over the patches; pure torch.

A block knows least about the patches that it takes first, so successive blocks take them along
different paths. A path is a permutation: the raster numbers of the patches, in the sequence in
which a block takes them. An order is a cycle of paths over the blocks.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowbench.errors import UsageError

Path = Callable[[int, int], Tensor]
"""Rows and columns of the grid of patches → int64 ``[rows * columns]``, on the CPU."""


def raster(rows: int, columns: int) -> Tensor:
    """Row by row from the top left."""
    return torch.arange(rows * columns, device="cpu")


def by_columns(rows: int, columns: int) -> Tensor:
    """Column by column from the top left."""
    return raster(rows, columns).view(rows, columns).T.flatten()


def snake(rows: int, columns: int) -> Tensor:
    """Row by row, every second one from right to left."""
    grid = raster(rows, columns).view(rows, columns).clone()
    grid[1::2] = grid[1::2].flip(1)
    return grid.flatten()


def hilbert(rows: int, columns: int) -> Tensor:
    """Hilbert's curve from the top left to the bottom left; always on to a neighbour.

    Raises:
        UsageError: The grid is not square with a power of two as its side.
    """
    if rows != columns or rows & (rows - 1):
        raise UsageError(
            f"order hilbert does not fit {rows}x{columns} patches: valid is a square of "
            "2, 4, 8, 16, ... patches a side"
        )
    curve, side = [(0, 0)], 1
    while side < rows:
        above = [(c, r) for r, c in curve] + [(r, c + side) for r, c in curve]
        below = [(r + side, c + side) for r, c in curve]
        last = [(2 * side - 1 - c, side - 1 - r) for r, c in curve]
        curve, side = above + below + last, 2 * side
    return torch.tensor([r * columns + c for r, c in curve], device="cpu")


def spiral(rows: int, columns: int) -> Tensor:
    """Clockwise along the border from the top left, and on inwards."""
    grid, path = raster(rows, columns).view(rows, columns), []
    while grid.numel():
        path.append(grid[0])
        grid = grid[1:].rot90()
    return torch.cat(path)


def checkerboard(rows: int, columns: int) -> Tensor:
    """All patches of one colour of a checkerboard, then all of the other."""
    place = raster(rows, columns)
    colour = (place // columns + place % columns) % 2
    return torch.cat([place[colour == 0], place[colour == 1]])


def backwards(path: Path) -> Path:
    """Give the same path from its end to its start."""
    return lambda rows, columns: path(rows, columns).flip(0)


ORDERS: dict[str, Sequence[Path]] = {
    "flip": (raster, backwards(raster)),
    "raster": (raster,),
    "columns": (raster, by_columns, backwards(raster), backwards(by_columns)),
    "snake": (snake, backwards(snake)),
    "hilbert": (hilbert, backwards(hilbert)),
    "spiral-in": (spiral, backwards(spiral)),
    "spiral-out": (backwards(spiral), spiral),
    "checkerboard": (checkerboard, backwards(checkerboard)),
}
"""Name → paths of blocks 0, 1, …, over and over; ``random-SEED`` has a new one for each block."""
RANDOM = "random-"
DRAWN = re.compile(RANDOM + "[0-9]{1,9}")


def path(order: str, block: int, rows: int, columns: int) -> Tensor:
    """Return the path of one block; int64 ``[rows * columns]``.

    Args:
        order: A name in ``ORDERS``, ``random-SEED``, or several joined by ``+``. These take turns
            over the blocks, and each goes on in its own cycle: with ``snake+columns`` blocks 0, 2,
            4, … follow ``snake`` and the others ``columns``.
        block: Number of the block; 0 is the one nearest the data.
        rows: Patches in a column of the image.
        columns: Patches in a row of the image.

    Raises:
        UsageError: The name is not that of an order, or its paths do not fit the grid.

    Example:
        >>> path("flip", 1, 2, 2).tolist(), path("flip+snake", 1, 2, 2).tolist()
        ([3, 2, 1, 0], [0, 1, 3, 2])
    """
    names = order.split("+")
    if not all(name in ORDERS or DRAWN.fullmatch(name) for name in names):
        raise UsageError(
            f"model.order = {order!r} is not valid: one of {', '.join(ORDERS)}, {RANDOM}SEED, "
            "or several joined by +"
        )
    turn, at = divmod(block, len(names))
    if paths := ORDERS.get(names[at]):
        return paths[turn % len(paths)](rows, columns)
    seed = int(names[at].removeprefix(RANDOM))
    generator = torch.Generator("cpu").manual_seed((seed << 16) + turn)
    return torch.randperm(rows * columns, generator=generator, device="cpu")


class Order(nn.Module):
    """The path of one block over its patches.

    Args:
        path: The permutation, int64 ``[T]``.
        saved: Whether it is saved with the weights: a path drawn at random is.
    """

    permutation: Tensor

    def __init__(self, path: Tensor, *, saved: bool) -> None:
        super().__init__()
        self.register_buffer("permutation", path, persistent=saved)
        places = raster(1, len(path))
        self.raster = not saved and bool((path == places).all())
        self.reversed = not saved and bool((path == places.flip(0)).all())

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """Rearrange T entries along a dimension from raster into the block's order."""
        if self.raster:
            return x
        return x.flip(dim) if self.reversed else x.index_select(dim, self.permutation)

    def undo(self, x: Tensor, dim: int) -> Tensor:
        """Rearrange T entries along a dimension from the block's order into raster."""
        if self.raster or self.reversed:
            return self(x, dim)
        return x.index_select(dim, self.permutation.argsort())
