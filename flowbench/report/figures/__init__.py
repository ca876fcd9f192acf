"""The figures of a report in their order; each module says what its figure needs and shows."""

from flowbench.report.figures.along import BY_BINS, BY_BLOCKS, BY_LAYERS
from flowbench.report.figures.bayes import BAYES
from flowbench.report.figures.compute import COMPUTE
from flowbench.report.figures.curves import BPD, LOSSES, RUN_LOSSES
from flowbench.report.figures.fidelity import FIDELITY
from flowbench.report.figures.images import DIGITS, SAMPLING, TRAJECTORIES
from flowbench.report.figures.importances import IMPORTANCES
from flowbench.report.figures.latents import LATENTS
from flowbench.report.figures.maps import PATCHES, POSITIONS
from flowbench.report.figures.orders import ORDERS, STARTS
from flowbench.report.figures.pareto import PARETO
from flowbench.report.figures.scaling import SCALING
from flowbench.report.figures.seconds import SECONDS_PER_EPOCH
from flowbench.report.figures.style import Plot
from flowbench.report.figures.trials import TRIALS

__all__ = ["FIGURES"]

FIGURES: tuple[Plot, ...] = (
    RUN_LOSSES,  # the original's figures, in its order
    LOSSES,
    DIGITS,
    BY_BLOCKS,
    BY_BINS,
    BPD,  # further results
    SECONDS_PER_EPOCH,
    BY_LAYERS,
    COMPUTE,
    SCALING,
    PARETO,
    ORDERS,
    STARTS,
    SAMPLING,
    FIDELITY,
    PATCHES,
    BAYES,  # in the appendix
    LATENTS,
    TRAJECTORIES,
    POSITIONS,
    TRIALS,
    IMPORTANCES,
)
