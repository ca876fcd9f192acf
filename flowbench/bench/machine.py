"""Upper limits of this machine, for comparison with every measurement."""

import torch

from flowbench.bench.measure import seconds
from flowbench.tracking.provenance import processor, provenance

SIZE = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices: a GPU needs longer to start a product of small ones than to do it."""
BYTES = 256 * 2**20


def limits() -> dict[str, float]:
    """Measure the rates of float32 and bf16 matrix products (FLOP/s) and of copying (bytes/s)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZE[device]
    a, b = torch.randn(2, size, size, device=device)
    bf16 = a.bfloat16(), b.bfloat16()
    source = torch.zeros(BYTES // 4, device=device)
    target = torch.ones_like(source)
    taken = seconds(
        {
            "float32": lambda: a @ b,
            "bf16": lambda: bf16[0] @ bf16[1],
            "copy": lambda: target.copy_(source),
        },
        repeats=10,
        warmup=2,
    )
    return {
        "matmul_float32": 2 * size**3 / min(taken["float32"]),
        "matmul_bf16": 2 * size**3 / min(taken["bf16"]),
        "copy": 2 * BYTES / min(taken["copy"]),
    }


def fastest(*measured: dict[str, float]) -> dict[str, float]:
    """Return the best of several measurements of the limits."""
    return {name: max(rates[name] for rates in measured) for name in measured[0]}


def facts() -> dict[str, str | int]:
    """Return device, threads, versions and commit, for every row of a record."""
    tags = provenance()
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "threads": torch.get_num_threads(),
        "torch": tags["version.torch"],
        "flowbench": tags["version.flowbench"],
        "commit": tags["commit"],
    }
