"""A study's workers as jobs of a cluster, through submitit: SLURM, or processes of this machine."""

import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowbench.errors import UsageError

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission


class Worker:
    """What a job does: ``flowbench sweep`` with one worker, which ends when nothing is left to do.

    A job that reaches its time limit, or is preempted, is queued again: the study goes on.

    Args:
        arguments: Those of ``flowbench``.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments

    def __call__(self) -> int:
        """Run the command in this process; return its exit status, 0.

        Raises:
            RuntimeError: It is another; submitit takes the job for failed.
        """
        sys.argv = ["flowbench", *self.arguments]
        try:
            runpy.run_module("flowbench", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(f"{' '.join(sys.argv)} ended with status {ended.code}") from None
        return 0

    def checkpoint(self) -> "DelayedSubmission":
        """Queue the job again; submitit calls this before the time limit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    arguments: list[str],
    jobs: int,
    cluster: str,
    options: Mapping[str, Any],
    logs: Path,
    storage: str | None,
) -> "list[Job[int]]":
    """Submit jobs that share a study.

    Args:
        arguments: Those of ``flowbench`` in each job.
        jobs: Number of jobs.
        cluster: slurm, or local for processes of this machine.
        options: submitit's, such as timeout_min or slurm_partition.
        logs: Directory of the jobs' output.
        storage: Optuna's; it reaches the jobs by their environment, which nobody else reads.

    Raises:
        UsageError: submitit is missing, cannot submit here, or does not know an option; or jobs
            of several machines would share files that only one machine can lock.
    """
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise UsageError('submit needs submitit: pip install "flowbench[submit]"') from error
    if storage:
        os.environ["FLOWBENCH_STORAGE"] = storage
    if cluster != "local":
        for name, words in {"FLOWBENCH_STORAGE": "--storage", "MLFLOW_TRACKING_URI": ""}.items():
            if "://" not in os.environ.get(name, ""):
                way = f"set {name}" + (f" or give {words}" if words else "")
                raise UsageError(f"jobs on several machines need a database or a server: {way}")
    try:
        executor = AutoExecutor(logs, cluster=cluster)
        executor.update_parameters(name="flowbench", **options)
        with executor.batch():
            return [executor.submit(Worker(arguments)) for _ in range(jobs)]
    except (RuntimeError, NameError, TypeError, ValueError, OSError) as error:
        raise UsageError(f"submitit on {cluster}: {error}") from error
