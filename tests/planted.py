"""Recorded runs made up for the tests of the report: what is planted is known, noise is small."""

from typing import Any

import numpy as np
import pandas as pd

from flowbench.report.files import Recorded, complete

TRANSFORMS, SEEDS, EPOCHS = ["affine", "rqs-4", "rqs-8"], 3, 6
# Prior, logdet and seconds per epoch of each transform.
PLANTED = {"affine": (0.52, 2.9, 10.0), "rqs-4": (0.50, 2.7, 15.0), "rqs-8": (0.49, 2.6, 20.0)}


def tables(
    planted: dict[str, tuple[float, float, float]] = PLANTED, seeds: int = SEEDS, sd: float = 1e-3
) -> Recorded:
    """Runs that were trained and not evaluated."""
    generator = np.random.default_rng(0)
    runs, history = [], []
    for transform, (prior, logdet, seconds) in planted.items():
        for seed in range(seeds):
            run = f"{transform}-{seed}-{'0' * 8}"
            own = {"run_id": run, "transform": transform, "seed": seed}
            final = {}
            for epoch in range(1, EPOCHS + 1):
                left = np.exp(-(epoch - EPOCHS))
                for stage in ("train", "val"):
                    noise = generator.normal(0, sd, 2)
                    final[f"{stage}/prior"] = prior + 0.001 * left + noise[0]
                    final[f"{stage}/logdet"] = logdet - 0.01 * left + noise[1]
                    loss = final[f"{stage}/prior"] - final[f"{stage}/logdet"]
                    final |= {f"{stage}/loss": loss, f"{stage}/bpd": 5 + loss / np.log(2)}
                taken = seconds * (1 + generator.normal(0, sd))
                history.append(own | {"epoch": epoch, "seconds_per_epoch": taken} | final)
            test = {f"test/{name}": final[f"val/{name}"] for name in ("loss", "prior", "bpd")}
            runs.append(
                own
                | {"name": "compare", "status": "finished", "data": "mnist-5k", "noise": "uniform"}
                | {"blocks": 4, "epochs": EPOCHS, "device": "None", "threads": 2, "torch": "2.10"}
                | {"commit": "12e4567", "seconds_per_epoch": taken, **final, **test}
            )
    samples = {
        name: generator.integers(0, 256, (2, 10, 8, 8, 1), dtype=np.uint8) for name in planted
    }
    return complete(Recorded(pd.DataFrame(runs), pd.DataFrame(history), samples, {}))


def evaluated(
    recorded: Recorded,
    noise: str = "uniform",
    ratio: float = 1.3,
    blocks: int = 4,
    side: int = 7,
    classes: int = 10,
    suffix: str = "digits",
) -> Recorded:
    """The same runs with everything that an evaluation leaves.

    Args:
        recorded: Runs.
        noise: Noise of the data.
        ratio: Patch ratio of every run, but for a little noise.
        blocks: Blocks of the flows.
        side: Patches along a side of the image.
        classes: Classes; 0 for data without labels.
        suffix: Name of the extractor.
    """
    generator = np.random.default_rng(1)
    parts: dict[str, list[pd.DataFrame]] = {}
    metrics = []
    order = list(dict.fromkeys(recorded.runs["transform"]))
    for run_id, transform in recorded.runs[["run_id", "transform"]].itertuples(index=False):
        worse = order.index(transform)
        tables = _tables(generator, worse, noise, blocks, side, classes)
        for name, table in tables.items():
            table.insert(0, "run_id", run_id)
            parts.setdefault(name, []).append(table)
        metrics.append(_metrics(generator, worse, noise, ratio, classes, suffix))
    evaluation = {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}
    bits = {} if noise == "uniform" else {"val/bpd": np.nan, "test/bpd": np.nan}
    runs = recorded.runs.assign(noise=noise, blocks=blocks, classes=classes, **bits)
    measured = pd.DataFrame(metrics, index=runs.index)
    runs = runs.drop(columns=measured.columns, errors="ignore").join(measured)
    samples = dict(recorded.samples)
    for name, images in recorded.samples.items():
        samples[f"{name}/guided"] = 255 - images
        samples[f"{name}/denoised"] = images // 2
        shape = (blocks + 1, *images.shape[1:])
        samples[f"{name}/trajectory"] = generator.integers(0, 256, shape, dtype=np.uint8)
    return complete(Recorded(runs, recorded.history, samples, evaluation))


def _metrics(
    generator: np.random.Generator, worse: int, noise: str, ratio: float, classes: int, suffix: str
) -> dict[str, Any]:
    measured = ratio * np.exp(generator.normal(0, 0.02))
    metrics = {
        "test/draws": 4,
        "patches/ratio": measured,
        "patches/ratio_low": measured / 1.1,
        "patches/ratio_high": measured * 1.1,
        f"fid_{suffix}": 4.0 + 3 * worse + generator.normal(0, 0.4),
        f"fid_{suffix}_floor": 0.21,
        f"kid_{suffix}": 0.02 + 0.01 * worse + generator.normal(0, 0.002),
        f"kid_{suffix}_floor": 0.0004,
        f"precision_{suffix}": 0.8 - 0.1 * worse + generator.normal(0, 0.01),
        f"precision_{suffix}_floor": 0.93,
        f"recall_{suffix}": 0.6 + 0.05 * worse + generator.normal(0, 0.01),
        f"recall_{suffix}_floor": 0.92,
        "fidelity/samples": 1000,
        "fidelity/real": 500,
        "fidelity/kid_subset": 500,
        f"extractor_{suffix}/accuracy": 0.968,
        f"extractor_{suffix}": "12e45678",
    }
    if noise == "uniform":
        bits = 3.0 + 0.1 * worse + generator.normal(0, 0.02)
        metrics |= {"test/bpd": bits, "test/bpd_se": 0.002, "test/bpd_iw": bits - 0.05}
    else:
        metrics |= {"test/nll": -1.4 + generator.normal(0, 0.02), "test/nll_se": 0.003}
    if classes:
        metrics |= {
            f"agreement_{suffix}": 0.9 - 0.05 * worse,
            "bayes/accuracy": 0.93,
            "bayes/ece": 0.04,
            "bayes/images": 500,
        }
    return metrics


def _tables(
    generator: np.random.Generator, worse: int, noise: str, blocks: int, side: int, classes: int
) -> dict[str, pd.DataFrame]:
    row, column = (axis.ravel() for axis in np.mgrid[:side, :side])
    patch = np.arange(side * side)
    middle = np.exp(-((row - side / 2) ** 2 + (column - side / 2) ** 2) / side)
    edge = np.isin(patch, [0, 1, side * side - 2, side * side - 1])
    score = 1 + 3 * middle + 0.2 * worse + generator.normal(0, 0.05, side * side)
    patches = pd.DataFrame({"patch": patch, "row": row, "column": column})
    patches["bpd" if noise == "uniform" else "nll"] = score
    patches["distance"] = 2 + worse + 6 * edge + generator.random(side * side)
    patches["floor"] = 0.4
    block, position = (axis.ravel() for axis in np.mgrid[:blocks, : side * side])
    logdet = generator.normal(0.4, 0.1, block.size) * (position > 0) / (1 + block)
    tables = {
        "patches": patches,
        "positions": pd.DataFrame({"block": block, "position": position, "logdet": logdet}),
    }
    if classes:
        label, predicted = (axis.ravel() for axis in np.mgrid[:classes, :classes])
        wrong = generator.poisson(0.4 + 0.2 * worse, label.size)
        count = np.where(label == predicted, 46, wrong)
        tables["confusion"] = pd.DataFrame({"label": label, "predicted": predicted, "count": count})
        confidence = (np.arange(15) + 0.5) / 15
        tables["calibration"] = pd.DataFrame(
            {
                "confidence": confidence,
                "accuracy": confidence ** (1.2 + 0.2 * worse),
                "count": np.r_[np.arange(3, 17), 300],
            }
        ).iloc[1:]
    return tables
