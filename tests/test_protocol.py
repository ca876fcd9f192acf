from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from plain_flow import wake
from torch import Tensor

from flowbench.config import Experiment
from flowbench.data import Images, Splits
from flowbench.evaluation import protocol
from flowbench.evaluation.protocol import Evaluation, evaluate
from flowbench.experiment import run
from flowbench.flow import Flow
from flowbench.module import FlowModule
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES
CLASSES = 3
MEASURED = {"evaluate__bayes": 30, "evaluate__samples": 60, "evaluate__draws": 2}


def images(count: int, classes: int, seed: int) -> Images:
    """A blot in a place of the class's own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % max(1, classes)
    pixels = torch.randint(0, 40, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        pixels[i, 0, 4 * label : 4 * label + 4, 4:12] += 180
    return Images(pixels, labels if classes else None)


def splits(classes: int = CLASSES, train: int = 120) -> Splits:
    parts = (images(count, classes, count) for count in (train, 60, 90))
    return Splits(*parts, classes=classes)


def evaluated(
    cache: Path, data: Splits | None = None, flow: Flow | None = None, **options: Any
) -> Evaluation:
    data = data or splits()
    experiment = tiny.experiment(**{**MEASURED, "model__patch": 4, **options})
    torch.manual_seed(0)
    module = FlowModule(experiment, data.shape, data.classes)
    flow = flow or wake(module.flow, 0.1)
    return evaluate(flow.eval(), module.dequantise, experiment, data, cache)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_all_is_measured_under_the_names_of_its_protocol(cache: Path) -> None:
    found = evaluated(cache)
    scores = ("fid", "kid", "precision", "recall")
    assert set(found.metrics) == {
        *("test/loss", "test/prior", "test/logdet", "test/draws"),
        *("test/bpd", "test/bpd_se", "test/bpd_iw", "test/bpd_median"),
        *("test/failed", "val/failed", "samples/nonfinite", "roundtrip/max"),
        "samples/per_second",
        *("bayes/accuracy", "bayes/ece", "bayes/images"),
        *("bayes/log_loss", "bayes/entropy", "bayes/excess"),
        *("patches/ratio", "patches/ratio_low", "patches/ratio_high"),
        *(f"{score}_digits{floor}" for score in scores for floor in ("", "_floor")),
        *("fidelity/samples", "fidelity/real", "fidelity/kid_subset"),
        *("extractor_digits/accuracy", "agreement_digits"),
    }
    assert found.metrics["fidelity/samples"] == 60
    assert found.metrics["samples/nonfinite"] == 0
    assert 0 < found.metrics["roundtrip/max"] < 1e-4
    assert set(found.tables) == {"patches", "positions", "confusion", "calibration", "agreement"}
    assert {"bpd", "distance", "floor"} <= set(found.tables["patches"].columns)
    assert found.images["samples"].shape == (1, CLASSES, 16, 16, 1)
    assert found.images["trajectory"].shape == (3, CLASSES, 16, 16, 1)
    assert len(found.tags["extractor_digits"]) == 16
    assert "fid_inception" in found.tags["skipped"]


def test_latents_are_measured_where_asked_for(cache: Path) -> None:
    found = evaluated(cache, evaluate__latents=30)
    assert found.tables["probe"]["block"].tolist() == [0, 1, 2]
    latents = found.tables["latents"]
    assert latents.groupby("set").size().to_dict() == {"test": 16, "train": 16}
    assert latents["ks"].between(0, 1).all()


def test_a_flow_is_measured_the_same_twice(cache: Path) -> None:
    first, second = evaluated(cache), evaluated(cache)
    assert first.metrics.pop("samples/per_second") > 0
    assert second.metrics.pop("samples/per_second") > 0
    assert first.metrics == second.metrics
    assert (first.images["samples"] == second.images["samples"]).all()


def test_gaussian_noise_has_nats_and_denoised_images_and_no_bits(cache: Path) -> None:
    found = evaluated(cache, data__noise="gaussian")
    assert "test/nll" in found.metrics
    assert not [name for name in found.metrics if "bpd" in name]
    assert "nll" in found.tables["patches"]
    assert (found.images["denoised"] != found.images["samples"]).any()


def test_what_is_compared_is_denoised(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stds = []
    draw = protocol.draw

    def noting(flow: Flow, y: Tensor, sampling: Any, **rest: Any) -> Tensor:
        stds.append(sampling.denoise_std)
        return draw(flow, y, sampling, **rest)

    monkeypatch.setattr(protocol, "draw", noting)
    evaluated(cache, data__noise="gaussian", data__noise_std=0.2)
    evaluated(cache)
    assert stds == [0.2, 0.0]


def test_guided_images_are_of_flows_trained_for_them(cache: Path) -> None:
    found = evaluated(cache, optim__label_dropout=0.1, evaluate__guidance=2.0)
    assert (found.images["guided"] != found.images["samples"]).any()
    assert "guided" not in evaluated(cache).images


def test_images_without_labels_have_likelihoods_and_patches_only(cache: Path) -> None:
    found = evaluated(cache, splits(0))
    assert {"test/bpd", "patches/ratio"} <= set(found.metrics)
    assert not [name for name in found.metrics if name.startswith(("fid", "bayes", "agreement"))]
    assert "no classes" in found.tags["skipped"]


def test_samples_that_are_not_finite_are_told_and_the_rest_measured(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny.experiment(model__patch=4)
    flow = FlowModule(experiment, (1, 16, 16), CLASSES).flow
    with torch.no_grad():
        flow.blocks[1].network.proj_out.bias.fill_(float("inf"))
    found = evaluated(cache, flow=flow)
    assert "test/draws" in found.metrics
    assert not [name for name in found.metrics if name.startswith(("fid", "patches"))]
    assert not found.images
    assert "block 1 of 2" in found.tags["skipped"]
    assert "100.0% of the samples are not finite" in found.tags["skipped"]
    assert found.metrics["samples/nonfinite"] == 1
    assert found.metrics["roundtrip/max"] == float("inf")
    assert "not measured: " in capsys.readouterr().err


@pytest.mark.parametrize(("count", "scored"), [(1, True), (3, False)])
def test_a_few_samples_that_are_not_finite_are_left_out_of_the_scores(
    cache: Path, monkeypatch: pytest.MonkeyPatch, count: int, scored: bool
) -> None:
    draw = protocol.draw

    def breaking(*arguments: Any, **options: Any) -> Tensor:
        images = draw(*arguments, **options)
        images[:count] = float("nan")
        return images

    monkeypatch.setattr(protocol, "draw", breaking)
    found = evaluated(cache, evaluate__samples=150)
    assert found.metrics["samples/nonfinite"] == pytest.approx(count / 150)
    assert ("fid_digits" in found.metrics) is scored
    assert ("agreement_digits" in found.metrics) is scored
    if scored:
        assert found.metrics["fidelity/samples"] == 149


def test_too_few_images_are_told(cache: Path) -> None:
    found = evaluated(cache, evaluate__samples=30)
    assert "fid_digits" not in found.metrics
    assert "30 generated images" in found.tags["skipped"]


def test_classes_are_asked_for_as_often_as_the_test_images_have_them() -> None:
    data = splits()
    flow = FlowModule(tiny.experiment(model__patch=4), data.shape, data.classes).flow
    pixels, asked, broken = protocol.generate(flow, tiny.experiment(), data, 100)
    assert broken == 0
    assert pixels.shape == (100, 1, 16, 16)
    assert data.test.labels is not None
    assert torch.equal(asked, torch.cat([data.test.labels, data.test.labels[:10]]))


@pytest.mark.slow
def test_a_small_fid_is_recorded_in_training_and_takes_no_training_time(tmp_path: Path) -> None:
    store = Store(tiny.results(tmp_path / "results"))
    options = {"evaluate__fidelity_every": 1, "evaluate__fidelity_samples": 40}
    record = run(tiny.experiment(**options), store)
    history = store.client.get_metric_history(record.run_id, "val/fid_digits")
    assert [point.step for point in history] == [1, 2]
    seconds = store.client.get_metric_history(record.run_id, "seconds_per_epoch")
    assert max(point.value for point in seconds) < 5  # the classifier's training takes longer


def test_settings_say_what_is_left_out(cache: Path) -> None:
    experiment: Experiment = tiny.experiment()
    assert replace(experiment.evaluate, samples=0, bayes=0, draws=1) == experiment.evaluate
    found = evaluated(cache, evaluate__bayes=0, evaluate__samples=0, evaluate__draws=1)
    assert set(found.metrics) == {
        *("test/loss", "test/prior", "test/logdet", "test/draws", "test/bpd", "test/bpd_iw"),
        *("test/bpd_median", "test/failed", "val/failed", "roundtrip/max"),
    }
