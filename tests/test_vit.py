from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowbench.errors import UsageError
from flowbench.vit import CausalTransformer, _fused_attention, _short_attention

T, D, OUTPUTS, CLASSES = 5, 3, 4, 6
LABELS = torch.tensor([0, 5, -1])
SIZES = [(1,) * T, (2, 3), (T,)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}

every_head_count = pytest.mark.parametrize("heads", [1, 2], ids=["1 head", "2 heads"])
every_class_count = pytest.mark.parametrize(
    "classes", [0, CLASSES], ids=["unconditional", "conditional"]
)


def network(heads: int = 2, classes: int = CLASSES, **more: object) -> CausalTransformer:
    """A network with every weight away from 0 and 1."""
    made = CausalTransformer(T, D, OUTPUTS, width=8, layers=2, heads=heads, classes=classes, **more)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made


def stepped(
    net: CausalTransformer,
    x: Tensor,
    y: Tensor | None,
    sizes: tuple[int, ...] = (1,) * T,
    temperature: Tensor | None = None,
) -> Tensor:
    """Outputs for so many tokens at a time."""
    cache = net.cache(len(x))
    embedding = (net.pos_embed + net.embed_class(y)).expand(len(x), -1, -1)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = zip(x.split(list(sizes), 1), starts, strict=True)
    return torch.cat([net.step(part, embedding, cache, t, temperature) for part, t in parts], 1)


@every_head_count
@every_class_count
def test_no_output_depends_on_a_later_input(heads: int, classes: int) -> None:
    net = network(heads, classes).double()
    y = LABELS[:1] if classes else None
    jacobian = torch.autograd.functional.jacobian(
        lambda x: net(x[None], net.pos_embed, y)[0], torch.randn(T, D, dtype=torch.float64)
    )
    dependence = jacobian.abs().amax((1, 3))  # [T of the output, T of the input]
    assert (dependence.triu(1) == 0).all()
    assert (dependence[torch.ones(T, T).tril().bool()] > 0).all()


@every_head_count
@every_class_count
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_cached_steps_are_the_full_pass(heads: int, classes: int, dtype: torch.dtype) -> None:
    net = network(heads, classes).to(dtype)
    x = torch.randn(3, T, D, dtype=dtype)
    y = LABELS if classes else None
    with torch.no_grad():
        torch.testing.assert_close(
            stepped(net, x, y), net(x, net.pos_embed, y), rtol=0, atol=TOLERANCE[dtype]
        )


@every_head_count
@pytest.mark.parametrize("sizes", [(5,), (2, 3), (1, 3, 1), (4, 1)], ids=str)
def test_any_steps_are_the_full_pass(heads: int, sizes: tuple[int, ...]) -> None:
    net = network(heads).double()
    x = torch.randn(3, T, D, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            stepped(net, x, LABELS, sizes), net(x, net.pos_embed, LABELS), rtol=0, atol=1e-12
        )


def test_a_step_taken_again_replaces_what_the_cache_knew() -> None:
    net = network().double()
    x = torch.randn(3, T, D, dtype=torch.float64)
    with torch.no_grad():
        cache, embedding = net.cache(3), net.pos_embed + net.embed_class(LABELS)
        net.step(x[:, :1], embedding, cache, 0)
        net.step(torch.randn(3, 4, D, dtype=torch.float64), embedding, cache, 1)
        net.step(x[:, 1:3], embedding, cache, 1)
        last = net.step(x[:, 3:], embedding, cache, 3)
        full = net(x, net.pos_embed, LABELS)
    torch.testing.assert_close(last, full[:, 3:], rtol=0, atol=1e-12)


def test_temperature_divides_the_logits_of_its_sequences() -> None:
    net = network().double()
    x = torch.randn(3, T, D, dtype=torch.float64)
    temperature = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    with torch.no_grad():
        got = [stepped(net, x, LABELS, sizes, temperature.view(3, 1, 1, 1)) for sizes in SIZES]
        plain = net(x, net.pos_embed, LABELS)
        for i, each in enumerate(temperature.tolist()):
            for layer in net.layers:  # a query of half the size has half the logits
                query = layer.attention.qkv
                query.weight[: net.width] /= each
                query.bias[: net.width] /= each
            expected = net(x, net.pos_embed, LABELS)[i]
            for outputs in got:
                torch.testing.assert_close(outputs[i], expected, rtol=0, atol=1e-12)
            assert each == 1 or (expected - plain[i]).abs().max() > 1e-3
            for layer in net.layers:
                layer.attention.qkv.weight[: net.width] *= each
                layer.attention.qkv.bias[: net.width] *= each


def test_a_shorter_input_gives_the_same_first_outputs() -> None:
    net = network().double()
    x = torch.randn(3, T, D, dtype=torch.float64)
    full = net(x, net.pos_embed, LABELS)
    part = net(x[:, :2], net.pos_embed[:2], LABELS)
    torch.testing.assert_close(part, full[:, :2], rtol=0, atol=1e-12)


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    net = network().double()
    x = torch.randn(3, T, D, dtype=torch.float64)
    alone = net(x[1:2], net.pos_embed, LABELS[1:2])
    torch.testing.assert_close(net(x, net.pos_embed, LABELS)[1:2], alone, rtol=0, atol=1e-12)


def test_no_label_is_the_mean_of_the_classes() -> None:
    net = network()
    mean = net.class_embed.mean(0, keepdim=True)
    torch.testing.assert_close(net.embed_class(torch.tensor([-1])), mean)
    torch.testing.assert_close(net.embed_class(None), mean)
    torch.testing.assert_close(net.embed_class(torch.tensor([2, 0])), net.class_embed[[2, 0]])


def test_a_label_that_is_no_class_is_an_error() -> None:
    with pytest.raises(IndexError):
        network().embed_class(torch.tensor([0, 99]))


def test_labels_minus_one_and_none_give_the_same_outputs() -> None:
    net = network()
    x = torch.randn(3, T, D)
    unlabelled = net(x, net.pos_embed, torch.full((3,), -1))
    torch.testing.assert_close(net(x, net.pos_embed, None), unlabelled)


def test_the_label_changes_every_output() -> None:
    net = network()
    x = torch.randn(1, T, D).expand(2, -1, -1)
    one, other = net(x, net.pos_embed, torch.tensor([1, 2]))
    assert (one != other).all()


def test_positions_change_the_outputs() -> None:
    net = network()
    x = torch.randn(1, T, D)
    assert (net(x, net.pos_embed, None) != net(x, net.pos_embed.flip(0), None)).all()


def test_an_unconditional_network_ignores_labels() -> None:
    net = network(classes=0)
    x = torch.randn(3, T, D)
    assert net.class_embed is None
    assert torch.equal(net(x, net.pos_embed, LABELS), net(x, net.pos_embed, None))


@pytest.mark.parametrize("activation", ["gelu", "gelu-tanh"])
def test_a_new_network_emits_zeros(activation: str) -> None:
    net = CausalTransformer(T, D, OUTPUTS, width=8, layers=1, classes=3, activation=activation)
    assert (net(torch.randn(3, T, D), net.pos_embed, None) == 0).all()


def test_activations_are_exact_and_tanh_gelu() -> None:
    exact, tanh = (network(activation=name).layers[0].mlp.main[1] for name in ("gelu", "gelu-tanh"))
    x = torch.linspace(-3, 3, 101)
    torch.testing.assert_close(exact(x), F.gelu(x))
    torch.testing.assert_close(tanh(x), F.gelu(x, approximate="tanh"))
    assert not torch.equal(exact(x), tanh(x))


@pytest.mark.parametrize(
    ("width", "heads"), [(32, 1), (64, 1), (100, 1), (128, 2), (256, 4)], ids=str
)
def test_every_64_channels_get_a_head(width: int, heads: int) -> None:
    assert CausalTransformer(T, D, OUTPUTS, width=width, layers=1).heads == heads


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 8, "heads": 3}, "width 8 .* 3 heads"),
        ({"width": 8, "activation": "relu"}, "'relu'.*gelu, gelu-tanh"),
    ],
    ids=["heads", "activation"],
)
def test_a_wrong_argument_is_told(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CausalTransformer(T, D, OUTPUTS, layers=1, **wrong)


@every_head_count
@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize("attention", [_short_attention, _fused_attention])
def test_attention_of_the_last_tokens_is_causal(attention: Any, n: int, heads: int) -> None:
    q, k, v = torch.randn(3, 4, heads, 7, 8, dtype=torch.float64).requires_grad_().unbind(0)
    got = attention(q[:, :, -n:], k, v)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, :, -n:]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, (q, k, v), weight),
        torch.autograd.grad(expected, (q, k, v), weight),
        rtol=0,
        atol=1e-12,
    )


@every_head_count
def test_bfloat16_autocast_runs_both_ways_and_stays_close(heads: int) -> None:
    net = network(heads)
    x = torch.randn(3, T, D)
    expected = net(x, net.pos_embed, LABELS)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        full = net(x, net.pos_embed, LABELS)
        cached = stepped(net, x, LABELS)
    scale = expected.abs().max()
    assert full.dtype == cached.dtype == torch.float32
    assert (full - expected).abs().max() <= TOLERANCE[torch.bfloat16] * scale
    assert (cached - expected).abs().max() <= TOLERANCE[torch.bfloat16] * scale


def test_autocast_leaves_inputs_and_outputs_finer_than_the_noise_of_dequantisation() -> None:
    net, x, shift = network(), torch.randn(3, T, D), 1 + 2**-12
    torch.nn.init.zeros_(net.proj_out.weight)
    torch.nn.init.constant_(net.proj_out.bias, shift)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert (net(x, net.pos_embed, LABELS) == shift).all()
        assert (stepped(net, x, LABELS) == shift).all()
    seen: list[Tensor] = []
    expected = net.proj_in(x)
    net.proj_in.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        net(x, net.pos_embed, LABELS)
        stepped(net, x, LABELS)
    assert torch.equal(seen[0], expected)
    torch.testing.assert_close(torch.cat(seen[1:], 1), expected)


def test_a_cache_is_the_only_thing_that_steps_write_to() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    x, y = torch.randn(3, T, D), LABELS.clone()
    x_before = x.clone()
    with torch.no_grad():
        first = stepped(net, x, y)
        again = stepped(net, x, y)
    assert torch.equal(first, again)
    assert torch.equal(x, x_before)
    assert torch.equal(y, LABELS)
    assert attributes == {name: set(vars(module)) for name, module in net.named_modules()}
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


@torch.no_grad()
def test_hooks_on_the_parts_of_a_layer_are_called() -> None:
    """For diagnosis: where a kernel would run the layer as a whole, it steps aside."""
    network = CausalTransformer(9, 4, 8, width=64, layers=2)
    called: list[str] = []
    for name, part in network.layers[1].named_modules():
        if isinstance(part, nn.Linear | nn.LayerNorm):
            part.register_forward_hook(lambda *_, name=name: called.append(name))
    x = torch.randn(3, 9, 4)
    network(x, network.pos_embed)
    assert len(called) == 6
    cache = network.cache(3)
    network.step(x[:, :1], network.pos_embed[None].expand(3, -1, -1), cache, 0)
    assert len(called) == 12
