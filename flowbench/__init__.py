"""flowbench: which elementwise transform to use inside a transformer autoregressive flow.

The public interface, each loaded at its first use: ``Experiment`` describes a run and ``run``
records it; ``Flow`` is the flow, ``FlowModule`` and ``FlowData`` are it and its images in
Lightning, ``load`` reads a trained one; ``parse`` makes an elementwise transform of its name, and
``Univariate`` a transform of ``torch.distributions`` of that. A name that is listed here is changed
or removed only after a release in which its use warns; all else may change at any time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flowbench.api import load, run
    from flowbench.config import Experiment
    from flowbench.data.module import FlowData
    from flowbench.distribution import Univariate
    from flowbench.flow import Flow
    from flowbench.module import FlowModule
    from flowbench.transforms import parse

__all__ = ["Experiment", "Flow", "FlowData", "FlowModule", "Univariate", "load", "parse", "run"]

_HOMES = {
    "Experiment": "config",
    "Flow": "flow",
    "FlowData": "data.module",
    "FlowModule": "module",
    "Univariate": "distribution",
    "load": "api",
    "parse": "transforms",
    "run": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flowbench' has no attribute {name!r}")
    return getattr(import_module(f"flowbench.{_HOMES[name]}"), name)
