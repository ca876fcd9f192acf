"""The Inception network, with weights that are random but of its own shape."""

import hashlib

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as theirs

from flowbench.data import Images, Splits
from flowbench.errors import Unavailable, UsageError
from flowbench.evaluation import inception
from flowbench.evaluation.fidelity import measure
from flowbench.evaluation.inception import FILE, extractor


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr(theirs, "load_state_dict_from_url", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    class Blank(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, _):
            pass

    path = tmp_path_factory.mktemp("weights") / FILE
    torch.save({}, path)
    torch.save(Blank("blank", ["2048"], str(path)).state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "HASH", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
        yield path


def test_without_weights_it_is_told_what_is_needed_and_where():
    with pytest.raises(
        Unavailable, match=f"{FILE}.*hub/checkpoints.*evaluate.inception_weights"
    ) as told:
        extractor()
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UsageError, match="there is no such file") as told:
        extractor(tmp_path / "absent.pth")
    assert not isinstance(told.value, Unavailable)


@pytest.mark.parametrize("where", ["named", "usual"])
def test_a_file_that_is_damaged_is_told(where, tmp_path):
    path = tmp_path / "home" / "hub" / "checkpoints" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"junk")
    with pytest.raises(UsageError, match=f"{path}.*damaged or of another network") as told:
        extractor(path if where == "named" else None)
    assert not isinstance(told.value, Unavailable)
    assert "\n" not in str(told.value)


def test_weights_of_another_network_are_told(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(torch.nn.Linear(2, 3).state_dict(), path)
    with pytest.raises(UsageError, match="damaged or of another network"):
        extractor(path)


@pytest.mark.gpu
def test_features_are_the_same_on_a_gpu(weights):
    made = extractor(weights)
    assert next(made.network.parameters()).is_cuda
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    features = made.features(pixels)
    made.network.cpu()
    torch.testing.assert_close(features, made.features(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_grey_images_are_repeated_to_three_channels_and_too_few_are_told(weights, tmp_path):
    state = torch.get_rng_state()
    made = extractor(weights)
    assert torch.equal(torch.get_rng_state(), state)
    grey = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)
    features = made.features(grey)
    assert features.shape == (4, 2048)
    assert features.dtype == torch.float64
    torch.testing.assert_close(features, made.features(grey.repeat(1, 3, 1, 1)))
    parts = [Images(grey, None) for _ in range(3)]
    with pytest.raises(Unavailable, match="its 2048 features need at least 2049"):
        measure(made, grey, torch.full((4,), -1), Splits(*parts, classes=0), tmp_path)
