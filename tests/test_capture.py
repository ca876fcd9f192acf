"""Passes replayed as CUDA graphs; on a CPU by a stand-in that has their fixed inputs."""

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from flowbench.data import Batch
from flowbench.errors import UsageError
from flowbench.module import FlowModule
from flowbench.trainer import make_trainer

SHAPE = (1, 28, 28)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was captured; replays copy what they are given into the inputs of the capture."""
    made: list[dict[str, Any]] = []

    def capture(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        plain = module.forward
        made.append(
            {
                "shapes": [tuple(own.shape) for own in inputs],
                "cached": torch.is_autocast_cache_enabled(),
                "autocast": torch.is_autocast_enabled("cpu"),
                "parameters": [id(parameter) for parameter in module.parameters()],
            }
        )

        def replay(*given: Tensor) -> Any:
            for own, new in zip(inputs, given, strict=True):
                assert own.shape == new.shape
                assert own.data_ptr() != new.data_ptr()
                own.copy_(new)
            return plain(*inputs)

        module.forward = replay  # type: ignore[method-assign]

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    return made


def batch_of(count: int, device: str = "cpu") -> Batch:
    random = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=random)
    return tiny.batch(pixels.to(device))


def trained(
    sizes: list[int], device: str = "cpu", bf16: bool = False, **options: Any
) -> tuple[FlowModule, list[float]]:
    """Train a flow on a batch of every size, and return it with its losses."""
    torch.manual_seed(0)
    module = FlowModule(tiny.experiment(**options), SHAPE, 10).to(device)
    adam = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    losses = []
    for size in sizes:
        adam.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = module.training_step(batch_of(size, device), 0)
        loss.backward()
        module.configure_gradient_clipping(adam)
        adam.step()
        losses.append(loss.item())
    return module, losses


@pytest.mark.parametrize("transform", ["affine", "rqs-4"])
def test_a_replayed_training_is_the_training(
    transform: str, captures: list[dict[str, Any]]
) -> None:
    sizes = [8, 8, 8, 5, 8]
    options = {"model__transform": transform, "optim__label_dropout": 0.2}
    plain, expected = trained(sizes, **options)
    assert not captures
    module, losses = trained(sizes, **options, capture=True)
    assert losses == expected
    assert tiny.same(dict(module.state_dict()), dict(plain.state_dict()))
    assert [made["shapes"] for made in captures] == [[(8, *SHAPE), (8,)], [(5, *SHAPE), (5,)]]
    weights = [id(parameter) for parameter in module.flow.parameters()]
    assert all(made["parameters"] == weights for made in captures)


@pytest.mark.parametrize("bf16", [False, True])
def test_weights_cast_for_a_capture_are_not_kept(
    bf16: bool, captures: list[dict[str, Any]]
) -> None:
    trained([8], bf16=bf16, capture=True)
    assert [(made["cached"], made["autocast"]) for made in captures] == [(False, bf16)]
    assert torch.is_autocast_cache_enabled()


def test_torch_captures_what_it_compiles(
    monkeypatch: pytest.MonkeyPatch, captures: list[dict[str, Any]]
) -> None:
    modes: list[str | None] = []
    monkeypatch.setattr(nn.Module, "compile", lambda _, mode: modes.append(mode))
    for capture in (False, True):
        module = FlowModule(tiny.experiment(compile=True, capture=capture), SHAPE, 10)
        module.on_fit_start()
        module.training_step(batch_of(8), 0)
    assert modes == [None, "reduce-overhead"]
    assert not captures


WRONG: dict[str, dict[str, Any]] = {
    "trainer.accumulate_grad_batches = 2 is not valid: 1 with capture": {
        "trainer__accumulate_grad_batches": 2
    },
    "optim.norm_penalty = 0.1 is not valid: 0 with capture": {"optim__norm_penalty": 0.1},
    "recompute = True is not valid: false with capture": {"recompute": True},
}


@pytest.mark.parametrize("words", WRONG)
def test_what_graphs_cannot_do_is_told(words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tiny.experiment(capture=True, **WRONG[words])


@pytest.mark.parametrize("devices", [1, 2])
def test_capturing_without_one_nvidia_gpu_is_told(devices: int) -> None:
    words = f"capture = True is not valid: .* need one NVIDIA GPU, not {devices} of type cpu"
    with pytest.raises(UsageError, match=words):
        make_trainer(tiny.experiment(capture=True, trainer__devices=devices))


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("transform", ["affine", "rqs-8"])
def test_graphs_train_what_separate_kernels_do(transform: str, bf16: bool) -> None:
    sizes = [8, 8, 8, 5, 8, 8]
    _, expected = trained(sizes, "cuda", bf16, model__transform=transform)
    _, losses = trained(sizes, "cuda", bf16, model__transform=transform, capture=True)
    assert losses == pytest.approx(expected, rel=1e-2 if bf16 else 1e-4)
