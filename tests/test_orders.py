"""Orders of the patches: permutations, their cycles over the blocks, causality in each."""

from itertools import pairwise

import pytest
import torch

from flowbench.decoding import Decoding, Guidance
from flowbench.errors import UsageError
from flowbench.flow import STARTS, Flow
from flowbench.orders import ORDERS, Order, path

NAMES = [*ORDERS, "random-3", "flip+snake", "random-1+columns+raster"]
LABELS = torch.tensor([0, 2, -1])
every_order = pytest.mark.parametrize("order", NAMES)
every_start = pytest.mark.parametrize("start", STARTS)


def trained(order: str = "flip", **options: object) -> Flow:
    """A small flow over 4 x 4 patches with weights that do something."""
    flow = Flow((1, 8, 8), 3, "srqs-4", 4, 1, 16, patch=2, order=order, **options).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in flow.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.1 * noise
    return flow


def images() -> torch.Tensor:
    return torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@every_order
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 6), (5, 1), (1, 1)])
def test_every_path_is_a_permutation_that_can_be_undone(order: str, grid: tuple[int, int]) -> None:
    if "hilbert" in order and grid not in [(4, 4), (1, 1)]:
        with pytest.raises(UsageError, match=r"hilbert does not fit .* 2, 4, 8, 16"):
            path(order, 0, *grid)
        return
    for block in range(9):
        own = path(order, block, *grid)
        assert own.sort().values.tolist() == list(range(grid[0] * grid[1]))
        module = Order(own, saved="random" in order)
        x = torch.randn(2, len(own), 3)
        assert torch.equal(module.undo(module(x, 1), 1), x)
        assert torch.equal(module(x, 1), x[:, own])


@pytest.mark.parametrize(
    ("order", "paths"),
    [
        ("flip", ["012345", "543210", "012345"]),
        ("raster", ["012345", "012345"]),
        ("columns", ["012345", "031425", "543210", "524130", "012345"]),
        ("snake", ["012543", "345210", "012543"]),
        ("spiral-in", ["012543", "345210"]),
        ("spiral-out", ["345210", "012543"]),
        ("checkerboard", ["024135", "531420"]),
        ("flip+snake", ["012345", "012543", "543210", "345210", "012345"]),
    ],
)
def test_paths_on_two_rows_of_three(order: str, paths: list[str]) -> None:
    for block, expected in enumerate(paths):
        assert "".join(map(str, path(order, block, 2, 3).tolist())) == expected


@pytest.mark.parametrize("name", ["snake", "hilbert", "spiral-in", "spiral-out"])
@pytest.mark.parametrize("side", [2, 4, 8])
def test_a_curve_always_goes_on_to_a_neighbour(name: str, side: int) -> None:
    places = [divmod(int(at), side) for at in path(name, 0, side, side)]
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in pairwise(places))


def test_a_random_order_differs_between_blocks_and_seeds_and_is_saved() -> None:
    drawn = [tuple(path(f"random-{seed}", block, 4, 4)) for seed in (0, 1) for block in (0, 1, 2)]
    assert len({tuple(map(int, each)) for each in drawn}) == 6
    one, two = trained("random-1"), trained("random-2")
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(images(), LABELS)[0], two(images(), LABELS)[0])
    assert "blocks.0.order.permutation" not in trained("snake").state_dict()


@pytest.mark.parametrize(
    "name", ["zigzag", "", "random-", "random-x", "random--1", "flip+", "Flip"]
)
def test_an_unknown_order_is_told_with_the_valid_ones(name: str) -> None:
    with pytest.raises(UsageError, match=r"model.order = .* is not valid: one of flip, raster"):
        path(name, 0, 4, 4)


@every_order
@every_start
def test_a_block_is_causal_in_its_own_order(order: str, start: str) -> None:
    weights = torch.randn(4, dtype=torch.float64)
    for block in trained(order, start=start).blocks:

        def run(x: torch.Tensor) -> torch.Tensor:
            return block.order(block(x, LABELS[:1])[0], 1) @ weights  # noqa: B023

        x = torch.randn(1, 16, 4, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(run, x)[0, :, 0].abs().amax(2)
        turns = block.order(jacobian, 1)
        assert (turns.triu(1) == 0).all()
        assert (turns.diagonal() > 0).all()
        assert (turns.tril(-1).sum(1)[1:] > 0).all()


@every_order
@every_start
def test_sampling_undoes_the_flow(order: str, start: str) -> None:
    flow = trained(order, start=start)
    z, log_det = flow(images(), LABELS)
    torch.testing.assert_close(flow.inverse(z.detach(), LABELS), images())
    jacobi = flow.inverse(z.detach(), LABELS, decoding=Decoding(segment=None))
    torch.testing.assert_close(jacobi, images())
    total = sum(step.log_slope.sum((1, 2)) for step in flow.trace(images(), LABELS))
    torch.testing.assert_close(total, log_det)


@every_start
@pytest.mark.parametrize("more", [{}, {"qk_norm": True, "final_norm": True, "clip": 2.0}])
def test_sampling_in_float32_equals_the_plain_path(start: str, more: dict[str, object]) -> None:
    flow = trained("snake", start=start, **more).float()
    z = torch.randn(3, 16, 4)
    x = flow.inverse(z, LABELS)
    torch.testing.assert_close(flow(x, LABELS)[0], z, rtol=1e-3, atol=1e-3)


@every_start
def test_a_new_flow_is_the_identity(start: str) -> None:
    flow = Flow((1, 8, 8), 3, "rqs-4", 2, 1, 16, patch=2, start=start, qk_norm=True, clip=4.0)
    x = torch.randn(3, 1, 8, 8)
    z, log_det = flow(x, LABELS)
    assert torch.equal(log_det, torch.zeros(3))
    assert torch.equal(flow.inverse(z, LABELS), x)


@every_start
def test_the_first_patch_depends_on_its_label_where_it_is_transformed(start: str) -> None:
    flow = trained(start=start)
    firsts = [
        step.z[:, 0] - step.x[:, 0]
        for step in flow.trace(images()[:1].expand(2, -1, -1, -1), LABELS[:2])
    ]
    if start == "identity":
        assert not firsts[0].any()
    else:
        assert not torch.equal(firsts[0][0], firsts[0][1])


@every_start
def test_guidance_of_no_strength_and_of_equal_labels_changes_nothing(start: str) -> None:
    flow, z = trained(start=start), torch.randn(3, 16, 4, dtype=torch.float64)
    free = flow.inverse(z)
    torch.testing.assert_close(flow.inverse(z, None, Guidance(3.0)), free)
    guided = flow.inverse(z, LABELS, Guidance(3.0))
    assert not torch.allclose(guided[0], flow.inverse(z, LABELS)[0])
    torch.testing.assert_close(guided[2], free[2])


@every_start
def test_guidance_reaches_the_first_patch_where_it_is_transformed(start: str) -> None:
    block, z = trained(start=start).blocks[0], torch.zeros(3, 16, 4, dtype=torch.float64)
    plain, guided = (block.inverse(z, LABELS, each).x[0, 0] for each in (None, Guidance(3.0)))
    assert torch.equal(plain, guided) == (start == "identity")


def test_a_clip_bounds_the_raw_parameters() -> None:
    params = [step.params.abs().max() for step in trained(clip=0.5).trace(images(), LABELS)]
    assert max(params) <= 0.5 < max(step.params.abs().max() for step in trained().trace(images()))


def test_layers_are_given_by_block() -> None:
    flow = Flow((1, 8, 8), 0, "affine", 3, [1, 3, 2], 16, patch=2)
    assert [len(block.network.layers) for block in flow.blocks] == [1, 3, 2]
    with pytest.raises(UsageError, match="3 numbers, one a block"):
        Flow((1, 8, 8), 0, "affine", 3, [1, 3], 16, patch=2)


@pytest.mark.slow
@every_start
def test_every_option_compiles_without_a_graph_break(start: str) -> None:
    torch.compiler.reset()
    options = {"start": start, "qk_norm": True, "final_norm": True, "clip": 2.0}
    flow = trained("random-0+hilbert", **options)
    latents: list[torch.Tensor] = []
    expected = flow(images(), LABELS, latents)
    assert len(latents) == 3
    flow.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(flow(images(), LABELS, []), expected)


@every_order
def test_positions_move_along_with_the_patches(order: str) -> None:
    """A block in an order is a raster block on rearranged patches with rearranged positions."""
    moved, plain = trained(order).blocks[1], trained("raster").blocks[1]
    path = moved.order.permutation
    plain.network.load_state_dict(moved.network.state_dict())
    plain.network.pos_embed.data = moved.network.pos_embed.data[path]
    x = torch.randn(3, 16, 4, dtype=torch.float64)
    expected, log_det = plain(x[:, path], LABELS)
    z, own = moved(x, LABELS)
    torch.testing.assert_close(z[:, path], expected)
    torch.testing.assert_close(own, log_det)
