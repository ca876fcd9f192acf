import math

import pytest
import torch
from plain_flow import PlainFlow, wake
from torch import Tensor
from torch.nn import functional as F

from flowbench.errors import UsageError
from flowbench.flow import AutoregressiveBlock, Flow, patchify, unpatchify

f32, f64 = torch.float32, torch.float64
TRANSFORMS = ["additive", "affine", "rqs-1", "rqs-4", "rqs-8-3", "affine+rqs-8", "rqs-4+additive"]
LABELS = torch.tensor([0, 2, -1])
# Of z, images and log-determinants of order 1, through a few blocks.
TOLERANCE = {f64: 1e-10, f32: 1e-5, "round trip": 1e-9, "trained": 1e-3, "integral": 2e-3}

every_transform = pytest.mark.parametrize("transform", TRANSFORMS)
SHAPES = {
    "square": ((1, 4, 4), 2),
    "wide": ((1, 4, 6), 2),
    "colour": ((3, 6, 4), 2),
    "one token": ((3, 4, 4), 4),
    "pixels": ((2, 3, 2), 1),
}
every_shape = pytest.mark.parametrize(("shape", "patch"), SHAPES.values(), ids=SHAPES.keys())


def small(transform: str = "affine", scale: float = 0.2, **more: object) -> Flow:
    arguments = {"shape": (1, 4, 6), "classes": 3, "blocks": 3, "layers": 2, "width": 16}
    arguments |= {"heads": 2, "patch": 2}
    return wake(Flow(transform=transform, **(arguments | more)), scale)


def tarflow(dtype: torch.dtype) -> tuple[Flow, PlainFlow, Tensor]:
    # Wide networks answer strongly, and an affine flow that amplifies at every token overflows.
    flow = small(scale=0.05, width=128, heads=None).to(dtype)
    weights = {name: p.detach().clone().requires_grad_() for name, p in flow.named_parameters()}
    return flow, PlainFlow(weights, patch=2), torch.randn(3, 1, 4, 6, dtype=dtype)


def inverse_without_cache(flow: Flow, z: Tensor, y: Tensor | None) -> Tensor:
    """Undo the blocks with a full pass of the network for every patch."""
    for block in reversed(flow.blocks):
        z = block.order(z, 1)
        pos_embed = block.order(block.network.pos_embed, 0)
        features, P = z.shape[2], block.transform.num_params
        x = torch.zeros_like(z)
        x[:, 0] = z[:, 0]
        for t in range(1, z.shape[1]):
            raw = block.network.forward(x, pos_embed, y)[:, t - 1]
            params = torch.stack([raw[:, p * features : (p + 1) * features] for p in range(P)], -1)
            x[:, t] = block.transform.inverse(z[:, t], params)[0]
        z = block.order(x, 1)
    return unpatchify(z, flow.shape, flow.patch)


@every_shape
def test_patches_are_those_of_unfold(shape: tuple[int, int, int], patch: int) -> None:
    images = torch.randn(5, *shape)
    expected = F.unfold(images, patch, stride=patch).transpose(1, 2)
    assert torch.equal(patchify(images, patch), expected)


@every_shape
def test_unpatchify_undoes_patchify(shape: tuple[int, int, int], patch: int) -> None:
    images = torch.randn(5, *shape)
    assert torch.equal(unpatchify(patchify(images, patch), shape, patch), images)


def test_unpatchify_undoes_patchify_of_images_with_channels_last() -> None:
    images = torch.randn(5, 3, 4, 6).contiguous(memory_format=torch.channels_last)
    assert torch.equal(unpatchify(patchify(images, 2), (3, 4, 6), 2), images)


@pytest.mark.parametrize(
    ("shape", "patch", "valid"),
    [((1, 28, 28), 5, "1, 2, 4, 7, 14, 28"), ((3, 4, 6), 4, "1, 2"), ((3, 4, 6), 3, "1, 2")],
    ids=["square", "does not divide the width", "does not divide the height"],
)
def test_a_patch_that_does_not_divide_is_told_with_those_that_do(
    shape: tuple[int, int, int], patch: int, valid: str
) -> None:
    with pytest.raises(UsageError, match=f"patch {patch} .*valid are {valid}$"):
        Flow(shape, patch=patch)


def test_an_unknown_transform_is_told() -> None:
    with pytest.raises(UsageError, match="'spline'"):
        Flow((1, 4, 4), transform="spline")


@every_transform
@every_shape
def test_a_new_flow_is_the_identity(
    transform: str, shape: tuple[int, int, int], patch: int
) -> None:
    flow = Flow(shape, classes=3, transform=transform, blocks=2, layers=1, width=8, patch=patch)
    images = 3 * torch.randn(3, *shape)
    z, log_det = flow(images, LABELS)
    assert torch.equal(z, patchify(images, patch))
    assert torch.equal(log_det, torch.zeros(3))
    assert torch.equal(flow.inverse(z, LABELS), images)


@pytest.mark.parametrize("dtype", [f64, f32], ids=["float64", "float32"])
def test_forward_is_that_of_the_plain_tarflow(dtype: torch.dtype) -> None:
    flow, plain, images = tarflow(dtype)
    z, log_det = flow(images, LABELS)
    expected_z, expected_log_det = plain.forward(images, LABELS)
    assert log_det.abs().min() > 0.1
    torch.testing.assert_close(z, expected_z, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(
        log_det, expected_log_det, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", [f64, f32], ids=["float64", "float32"])
def test_gradients_are_those_of_the_plain_tarflow(dtype: torch.dtype) -> None:
    flow, plain, images = tarflow(dtype)
    for model in (flow.forward, plain.forward):
        z, log_det = model(images, LABELS)
        (0.5 * z.square().sum() - log_det.sum()).backward()
    got = {name: parameter.grad for name, parameter in flow.named_parameters()}
    expected = {name: weight.grad for name, weight in plain.weights.items()}
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    torch.testing.assert_close(
        got, expected, rtol=10 * TOLERANCE[dtype], atol=TOLERANCE[dtype] * largest
    )


@pytest.mark.parametrize("dtype", [f64, f32], ids=["float64", "float32"])
def test_inverse_is_that_of_the_plain_tarflow(dtype: torch.dtype) -> None:
    flow, plain, _ = tarflow(dtype)
    z = torch.randn(3, flow.tokens, flow.features, dtype=dtype)
    with torch.no_grad():
        expected = plain.inverse(z, LABELS, (4, 6))
    torch.testing.assert_close(
        flow.inverse(z, LABELS), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@every_transform
@pytest.mark.parametrize("classes", [0, 3], ids=["unconditional", "conditional"])
def test_inverse_with_a_cache_is_that_without(transform: str, classes: int) -> None:
    flow = small(transform, classes=classes).double()
    z = torch.randn(3, flow.tokens, flow.features, dtype=f64)
    y = LABELS if classes else None
    with torch.no_grad():
        expected = inverse_without_cache(flow, z, y)
    torch.testing.assert_close(flow.inverse(z, y), expected, rtol=0, atol=TOLERANCE[f64])


@every_transform
@every_shape
def test_inverse_undoes_forward(transform: str, shape: tuple[int, int, int], patch: int) -> None:
    flow = small(transform, shape=shape, patch=patch).double()
    images = 2 * torch.randn(3, *shape, dtype=f64)
    z, _ = flow(images, LABELS)
    torch.testing.assert_close(
        flow.inverse(z, LABELS), images, rtol=0, atol=TOLERANCE["round trip"]
    )


@every_transform
def test_log_det_is_that_of_the_jacobian(transform: str) -> None:
    flow = small(transform, shape=(2, 2, 6)).double()
    image = 2 * torch.randn(1, 2, 2, 6, dtype=f64)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: flow(x.view(1, 2, 2, 6), LABELS[:1])[0].flatten(), image.flatten()
    )
    sign, expected = torch.linalg.slogdet(jacobian)
    _, log_det = flow(image, LABELS[:1])
    # Patchify permutes pixels, which may flip the sign of the determinant but not its size.
    assert sign.abs() == 1
    torch.testing.assert_close(log_det[0], expected, rtol=0, atol=TOLERANCE[f64])


@every_transform
@pytest.mark.parametrize("number", [0, 1])
def test_a_block_is_triangular_in_its_order(transform: str, number: int) -> None:
    block = small(transform, blocks=2).double().blocks[number]
    order = block.order
    assert isinstance(block, AutoregressiveBlock)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: block(x[None], LABELS[:1])[0][0], torch.randn(6, 4, dtype=f64)
    )
    jacobian = order(order(jacobian, 0), 2)
    between = jacobian.abs().amax((1, 3))
    assert (between.triu(1) == 0).all()
    if transform != "rqs-1":  # one bin on a fixed square has nothing left to vary
        assert (between[torch.ones(6, 6).tril().bool()] > 0).all()
    within = jacobian.diagonal(dim1=0, dim2=2)  # [D, D, T]
    assert (within[~torch.eye(4, dtype=torch.bool)] == 0).all()
    assert (within.diagonal(dim1=0, dim2=1) > 0).all()


@every_transform
@pytest.mark.parametrize(("i", "first"), [(0, 0), (1, -1)], ids=["raster", "reversed"])
def test_a_block_leaves_the_first_patch_of_its_order(transform: str, i: int, first: int) -> None:
    block = small(transform, blocks=2).blocks[i]
    x = torch.randn(3, 6, 4)
    z, _ = block(x, LABELS)
    assert torch.equal(z[:, first], x[:, first])
    assert torch.equal(block.inverse(z, LABELS).x[:, first], x[:, first])
    if transform != "rqs-1":
        assert (z != x).flatten(2).any(2).sum(1).eq(5).all()


@every_transform
def test_trace_is_what_forward_does(transform: str) -> None:
    flow = small(transform)
    images = torch.randn(3, 1, 4, 6)
    steps = list(flow.trace(images, LABELS))
    z, log_det = flow(images, LABELS)
    assert len(steps) == len(flow.blocks)
    assert torch.equal(flow.blocks[-1].order(steps[-1].z, 1), z)
    assert steps[0].params.shape == (3, 6, 4, flow.blocks[0].transform.num_params)
    torch.testing.assert_close(sum(step.log_slope.sum((1, 2)) for step in steps), log_det)


@every_transform
def test_every_parameter_gets_a_gradient(transform: str) -> None:
    flow = small(transform)
    z, log_det = flow(torch.randn(3, 1, 4, 6), LABELS)
    (0.5 * z.square().sum() - log_det.sum()).backward()
    idle = [
        name
        for name, parameter in flow.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert idle == ([] if transform != "rqs-1" else [name for name, _ in flow.named_parameters()])


@every_transform
def test_a_new_flow_can_learn(transform: str) -> None:
    flow = Flow((1, 4, 6), transform=transform, blocks=1, layers=1, width=8, patch=2)
    z, log_det = flow(torch.randn(3, 1, 4, 6))
    (0.5 * z.square().sum() - log_det.sum()).backward()
    moves = flow.blocks[0].network.proj_out.bias.grad.abs().sum() > 0
    assert moves == (transform != "rqs-1")


def test_labels_matter_to_density_and_samples() -> None:
    flow = small("affine+rqs-8")
    images = torch.randn(1, 1, 4, 6).expand(4, -1, -1, -1)
    y = torch.tensor([0, 1, 2, -1])
    assert len(set(flow.log_prob(images, y).tolist())) == 4
    z = torch.randn(1, flow.tokens, flow.features).expand(4, -1, -1).contiguous()
    drawn = flow.inverse(z, y)
    distances = torch.cdist(drawn.flatten(1)[None], drawn.flatten(1)[None])[0]
    assert (distances[~torch.eye(4, dtype=torch.bool)] > 1e-3).all()


def test_no_label_is_label_minus_one() -> None:
    flow = small()
    images = torch.randn(3, 1, 4, 6)
    torch.testing.assert_close(flow.log_prob(images), flow.log_prob(images, torch.full((3,), -1)))


def test_log_prob_of_a_new_flow_is_the_standard_normals() -> None:
    flow = Flow((3, 4, 6), blocks=2, layers=1, width=8, patch=2)
    images = torch.randn(5, 3, 4, 6)
    expected = torch.distributions.Normal(0, 1).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(flow.log_prob(images), expected)


@every_transform
def test_log_prob_is_the_change_of_variables(transform: str) -> None:
    flow = small(transform)
    images = torch.randn(5, 1, 4, 6)
    z, log_det = flow(images)
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum((1, 2)) + log_det
    assert log_det.shape == (5,)
    torch.testing.assert_close(flow.log_prob(images), expected)


@pytest.mark.parametrize("transform", ["affine", "rqs-4", "affine+rqs-8"])
def test_density_integrates_to_one(transform: str) -> None:
    flow = small(transform, shape=(1, 1, 2), patch=1, classes=0, blocks=2, layers=1).double()
    side, n = 9.0, 301
    axis = torch.linspace(-side, side, n, dtype=f64)
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    with torch.no_grad():
        log_prob = flow.log_prob(grid)
        shifted = torch.distributions.Normal(0, 1).log_prob(grid).sum((1, 2, 3)) - log_prob
    integral = log_prob.exp().sum() * (2 * side / (n - 1)) ** 2
    assert shifted.abs().max() > 0.3
    assert integral.item() == pytest.approx(1, abs=TOLERANCE["integral"])


def test_samples_of_a_new_flow_are_standard_normal() -> None:
    flow = Flow((1, 4, 6), blocks=2, layers=1, width=8, patch=2)
    x = flow.sample(torch.full((2000,), -1), torch.Generator().manual_seed(0)).flatten(1)
    n = x.numel()
    assert x.mean().item() == pytest.approx(0, abs=5 / math.sqrt(n))
    assert x.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / n))
    assert (torch.corrcoef(x.T) - torch.eye(24)).abs().max() < 6 / math.sqrt(2000)


def test_samples_have_the_density_that_the_flow_gives_them() -> None:
    flow = small("affine+rqs-8", shape=(1, 1, 2), patch=1, classes=0)
    x = flow.sample(torch.full((20_000,), -1), torch.Generator().manual_seed(0))
    # E[q(x)/p(x)] over samples of p is 1 for any density q that p covers.
    q = torch.distributions.Normal(0, 0.7).log_prob(x).sum((1, 2, 3))
    with torch.no_grad():
        weights = (q - flow.log_prob(x)).exp()
    assert weights.std() > 0.3
    error = 5 * weights.std().item() / math.sqrt(20_000)
    assert weights.mean().item() == pytest.approx(1, abs=error)


def test_samples_follow_their_generator() -> None:
    flow = small()
    one, same, other = (
        flow.sample(LABELS, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert one.shape == (3, 1, 4, 6)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@every_transform
@pytest.mark.parametrize("blocks", [1, 2], ids=["ends in raster order", "ends reversed"])
def test_arguments_are_left_alone(transform: str, blocks: int) -> None:
    flow = small(transform, blocks=blocks)
    images, z, y = torch.randn(3, 1, 4, 6), torch.randn(3, 6, 4), LABELS.clone()
    before = images.clone(), z.clone(), y.clone()
    flow(images, y)
    flow.log_prob(images, y)
    flow.inverse(z, y)
    flow.sample(y)
    assert torch.equal(images, before[0])
    assert torch.equal(z, before[1])
    assert torch.equal(y, before[2])


def test_sampling_leaves_no_state_and_no_gradient() -> None:
    flow = small()
    images = torch.randn(3, 1, 4, 6)
    weights = {name: value.clone() for name, value in flow.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in flow.named_modules()}
    before, _ = flow(images, LABELS)
    drawn = flow.sample(LABELS)
    inverse = flow.inverse(before, LABELS)
    assert not drawn.requires_grad
    assert not inverse.requires_grad
    assert torch.is_grad_enabled()
    assert flow.training
    assert attributes == {name: set(vars(module)) for name, module in flow.named_modules()}
    torch.testing.assert_close(dict(flow.state_dict()), weights, rtol=0, atol=0)
    assert torch.equal(flow(images, LABELS)[0], before)


@pytest.mark.parametrize("transform", ["affine", "rqs-4"])
def test_compiling_in_place_keeps_keys_and_results(transform: str) -> None:
    torch.compiler.reset()
    flow = small(transform, blocks=2, layers=1)
    images = torch.randn(3, 1, 4, 6)
    keys, expected = list(flow.state_dict()), flow(images, LABELS)
    flow.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(flow(images, LABELS), expected)
    assert list(flow.state_dict()) == keys


def test_weights_saved_and_loaded_give_the_same_density() -> None:
    flow, other = small("rqs-4"), small("rqs-4")
    images = torch.randn(3, 1, 4, 6)
    assert not torch.equal(flow.log_prob(images), other.log_prob(images))
    other.load_state_dict(flow.state_dict())
    assert torch.equal(flow.log_prob(images), other.log_prob(images))


@every_transform
def test_under_bfloat16_autocast_results_are_float32_and_invertible(transform: str) -> None:
    flow = small(transform)
    images = torch.randn(3, 1, 4, 6)
    exact, _ = flow(images, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(images, LABELS)
        back = flow.inverse(z, LABELS)
    assert z.dtype == log_det.dtype == back.dtype == f32
    torch.testing.assert_close(z, exact, rtol=0, atol=0.05)
    torch.testing.assert_close(back, images, rtol=0, atol=0.1)


def test_a_single_patch_passes_unchanged() -> None:
    flow = small(shape=(1, 4, 4), patch=4)
    images = torch.randn(3, 1, 4, 4)
    z, log_det = flow(images, LABELS)
    assert torch.equal(z, images.flatten(1)[:, None])
    assert torch.equal(log_det, torch.zeros(3))
    assert torch.equal(flow.inverse(z, LABELS), images)


def structured(generator: torch.Generator, count: int) -> Tensor:
    """Black images with a bright bar: mostly background, as digits are."""
    images = torch.zeros(count, 1, 8, 8)
    rows = torch.randint(8, (count,), generator=generator)
    images[torch.arange(count), :, rows] = 1
    return (255 * images + torch.rand(images.shape, generator=generator)) / 128 - 1


@pytest.mark.parametrize("transform", ["affine", "rqs-8"])
def test_eight_trained_blocks_still_invert_in_float32(transform: str) -> None:
    generator = torch.Generator().manual_seed(0)
    flow = Flow((1, 8, 8), transform=transform, blocks=8, layers=1, width=32, patch=4)
    optimizer = torch.optim.AdamW(flow.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        z, log_det = flow(structured(generator, 64))
        loss = 0.5 * z.square().mean() - log_det.mean() / flow.dims
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    images = structured(generator, 64)
    with torch.no_grad():
        z, _ = flow(images)
    assert losses[-1] < losses[0] - 0.3
    torch.testing.assert_close(flow.inverse(z), images, rtol=0, atol=TOLERANCE["trained"])


@pytest.mark.parametrize("transform", ["affine", "rqs-8"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_flow_has_the_named_parts(transform: str, blocks: int) -> None:
    flow = small(transform, blocks=blocks, layers=2)
    assert len(flow.blocks) == blocks
    assert all(block.transform.name == transform for block in flow.blocks)
    assert all(len(block.network.layers) == 2 for block in flow.blocks)
    assert (flow.tokens, flow.features, flow.dims) == (6, 4, 24)


@pytest.mark.parametrize("transform", ["affine", "rqs-8"])
def test_several_threads_give_the_same_gradients_every_time(transform: str) -> None:
    flow = wake(Flow((1, 28, 28), 10, transform=transform, blocks=1, layers=1, width=64), 0.05)
    images, y = torch.randn(512, 1, 28, 28), torch.arange(512) % 10
    torch.set_num_threads(2)

    def gradients() -> tuple[Tensor, ...]:
        z, log_det = flow(images, y)
        return torch.autograd.grad(z.square().sum() - log_det.sum(), list(flow.parameters()))

    first = gradients()
    for _ in range(5):
        assert all(map(torch.equal, gradients(), first))
