"""That everything is computed where its inputs are, on tensors that have a device but no values.

What would mix devices fails there, and so does what would wait for a GPU to read a value.
"""

import pytest
import tiny
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flowbench.decoding import Guidance
from flowbench.evaluation.sampling import Sampling, noise
from flowbench.flow import STARTS, Flow
from flowbench.module import FlowModule

TRANSFORMS = ["affine", "softaffine", "rqs-8", "srqs-8", "cubic-4", "mol-4", "affine+rqs-4"]
GUIDED = Guidance(2.0, "linear", temperature=1.5)


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_step_and_a_validation_read_no_value(transform: str, noise: str) -> None:
    options = {"optim__label_dropout": 0.1, "data__flip": True, "optim__norm_penalty": 0.1}
    chosen = tiny.experiment(model__transform=transform, data__noise=noise, **options)
    module = FlowModule(chosen, (1, 28, 28), 10).to("meta")
    batch = tiny.batch(torch.zeros(8, 1, 28, 28, dtype=torch.uint8, device="meta"))
    adam = torch.optim.AdamW(module.parameters())
    for number in range(2):
        adam.zero_grad()
        module.training_step(batch, number).backward()
        module.configure_gradient_clipping(adam)
        del adam.found_inf  # type: ignore[attr-defined]  # the fused optimiser's, for real devices
        adam.step()
    module.on_validation_epoch_start()
    with torch.no_grad():
        module.validation_step(batch, 0)
    for part in (module.watch.stop, *module.parameters(), *module.evaluated._sums.values()):
        assert part.is_meta


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("transform", ["softaffine", "rqs-8"])
def test_samples_of_closed_inverses_read_no_value(transform: str, start: str) -> None:
    flow = Flow((1, 8, 8), 10, transform=transform, start=start, blocks=1, layers=1, width=16)
    mode, shape = FakeTensorMode(), (8, 1, 8, 8)
    with mode, torch.no_grad():
        flow._apply(lambda weight: mode.from_tensor(weight).to("cuda"))
        y = torch.arange(8, device="cuda")
        for truncation, guidance in ((None, None), (1.0, GUIDED)):
            z = noise(flow, 8, Sampling(0, truncation=truncation))
            images = flow.inverse(z, y, guidance)
            assert (images.device.type, images.shape) == ("cuda", shape)
            assert flow.log_prob(images, y).device.type == "cuda"
