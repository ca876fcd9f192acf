"""The Inception network of the usual FID and KID, where its weights are available."""

import hashlib
from pathlib import Path

import torch
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from flowbench.errors import Unavailable, UsageError
from flowbench.evaluation.extractor import Extractor, create
from flowbench.terminal import say

FILE = Path(URL_INCEPTION_V3).name
HASH = FILE.removesuffix(".pth").rpartition("-")[2]
"""Beginning of the published file's SHA-256, by torch's custom a part of its name."""


def extractor(weights: Path | None = None) -> Extractor:
    """torch-fidelity's ``inception-v3-compat``, on the GPU where there is one; never downloaded.

    Its features are of photographs: of digits they say little, so that its numbers have names of
    their own.

    Args:
        weights: The file of its weights; None: torch-fidelity's usual place, if it is there.

    Raises:
        Unavailable: There is no file in the usual place.
        UsageError: The given file is missing, or the file is damaged or of another network.

    References:
        Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium* (2017), https://arxiv.org/abs/1706.08500
    """
    path = find(weights)
    check_weights(path)
    made = create(
        "inception-v3-compat",
        "inception",
        colour=True,
        feature_extractor_weights_path=str(path),
    )
    if torch.cuda.is_available():
        made.network.cuda()
    else:
        say("FID by Inception on the CPU: some 5 minutes a core for every 1,000 images")
    return made


def find(weights: Path | None) -> Path:
    """Find the file of weights: the given one, or that in torch-fidelity's usual place.

    Raises:
        Unavailable: There is no file in the usual place.
    """
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if weights is None and not path.exists():
        raise Unavailable(
            f"fid_inception and kid_inception need {FILE} of torch-fidelity's release v0.2.0, in "
            f"torch's directory hub/checkpoints or named by evaluate.inception_weights"
        )
    return path


def check_weights(path: Path) -> None:
    """Check that a file is the published one; torch-fidelity would run any code in another.

    Raises:
        UsageError: It is missing, damaged or of another network.
    """
    valid = f"valid for evaluate.inception_weights is torch-fidelity's {FILE}"
    if not path.is_file():
        raise UsageError(f"weights of Inception {path}: there is no such file; {valid}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(HASH):
        raise UsageError(
            f"weights of Inception {path} are damaged or of another network: their SHA-256 begins "
            f"with {found[: len(HASH)]}, not {HASH}; {valid}"
        )
