"""The command line; what is heavy is imported by the command that needs it."""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from flowbench.errors import Interrupted, UsageError
from flowbench.terminal import Parser, positive, say

INTERRUPTED = 130
RESULTS = Path("results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; give the exit status: 0, 2 for an error told on one line, 130 if stopped."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    command, *rest = [a for a in arguments if a != "--debug"] or ["--help"]
    if command in ("-h", "--help"):
        print(_overview())
        return 0
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        if command not in COMMANDS:
            raise UsageError(f"unknown command {command!r}: valid are {', '.join(COMMANDS)}")
        COMMANDS[command](rest)
    except KeyboardInterrupt as stopped:
        say(" ".join(str(stopped).split()) or "stopped")
        return INTERRUPTED
    except (UsageError, OSError) as error:
        if debug:
            raise
        say(f"error: {' '.join(str(error).split())}")
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def train(arguments: Sequence[str]) -> None:
    """Train, test and record one experiment."""
    from flowbench import config

    parser = config.experiment_parser("flowbench train", _first_line(train))
    _add_results(parser)
    parser.add_argument("--resume", metavar="RUN", help="go on with this stopped run")
    experiment, parsed = config.parse(parser, arguments)
    say("loading torch and lightning")
    from flowbench.experiment import run
    from flowbench.tracking.store import Store

    if parsed.resume and experiment != config.Experiment():
        raise UsageError("--resume goes on with the recorded options: give no others")
    store = Store(parsed.results)
    if parsed.resume:
        experiment = store.experiment(parsed.resume)
    try:
        record = run(experiment, store, resume=parsed.resume)
    except Interrupted as stopped:
        if not stopped.run_id:
            raise  # the first process tells how to go on
        raise _with_command(
            stopped, ["train", "--resume", stopped.run_id], parsed.results
        ) from None
    if not record.run_id:
        return  # the first process tells the result of all
    print(f"run {record.run_id}")
    for key in ("test/bpd", "test/loss", "test/prior", "test/logdet"):
        if key in record.metrics:
            print(f"{key} {record.metrics[key]:.4f}")


def sweep(arguments: Sequence[str]) -> None:
    """Run what is missing of a study, then report it."""
    parser = _parser("sweep", sweep)
    _add_study(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the runs, start none")
    parsed = parser.parse_args(arguments)
    from flowbench.study import read

    study = read(parsed.study, parsed.scale)
    say(f"study {study.name}: {study.cost}")
    if parsed.dry_run:
        for point in study.points:
            print(" ".join(f"{key}={value}" for key, value in point.values.items()))
        return
    from flowbench import sweep as runner
    from flowbench.tracking.store import Store

    store = Store(parsed.results)
    try:
        runner.sweep(study, store)
    except Interrupted as stopped:
        again = ["sweep", str(parsed.study), "--scale", parsed.scale]
        raise _with_command(stopped, again, parsed.results) from None
    report([study.name, "--results", str(parsed.results)])


def report(arguments: Sequence[str]) -> None:
    """Make the figures, tables and page of a recorded study."""
    from flowbench.report.__main__ import main as make

    make(arguments)


def evaluate(arguments: Sequence[str]) -> None:
    """Measure the test likelihood of a run or a checkpoint."""
    parser = _parser("evaluate", evaluate)
    _add_run(parser)
    parser.add_argument("--draws", type=positive, default=4, help="passes, each with its own noise")
    parsed = parser.parse_args(arguments)
    say("loading torch and lightning")
    from flowbench.experiment import test
    from flowbench.tracking.store import Store

    metrics = test(Store(parsed.results).checkpoint_of(parsed.run), parsed.draws)
    for key, value in metrics.items():
        print(f"{key} {value:.4f}")


def sample(arguments: Sequence[str]) -> None:
    """Draw images of every class from a run or a checkpoint."""
    parser = _parser("sample", sample)
    _add_run(parser)
    parser.add_argument("--rows", type=positive, default=10, help="images of each class")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="PNG to write")
    parsed = parser.parse_args(arguments)
    say("loading torch and lightning")
    from PIL import Image

    from flowbench.checkpoint import load
    from flowbench.evaluation.samples import draw_classes, grid
    from flowbench.tracking.store import Store

    module = load(Store(parsed.results).checkpoint_of(parsed.run))
    images = grid(draw_classes(module.flow, module.classes, parsed.rows, parsed.seed))
    Image.fromarray(images.squeeze()).save(parsed.out, format="PNG")
    print(parsed.out)


def ui(arguments: Sequence[str]) -> None:
    """Browse the recorded runs with MLflow's own pages."""
    parser = _parser("ui", ui)
    _add_results(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on")
    parsed = parser.parse_args(arguments)
    from flowbench.tracking.server import serve

    serve(parsed.results, parsed.host, parsed.port)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "sweep": sweep,
    "report": report,
    "ui": ui,
}


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Let SIGTERM end a command as Ctrl-C does."""
    raise KeyboardInterrupt


def _with_command(stopped: Interrupted, command: Sequence[str], results: Path) -> Interrupted:
    """Add the command that goes on."""
    elsewhere = [] if results == RESULTS else ["--results", str(results)]
    again = shlex.join(["flowbench", *command, *elsewhere])
    return Interrupted(f"{stopped}; go on with: {again}", stopped.run_id)


def _parser(name: str, command: Callable[..., None]) -> argparse.ArgumentParser:
    return Parser(prog=f"flowbench {name}", description=_first_line(command))


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="directory of all that is recorded"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="id of a recorded run, or the path of a checkpoint")
    _add_results(parser)


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="a study file: sweeps/*.yaml")
    parser.add_argument("--scale", default="quick", help="quick or full")
    _add_results(parser)


def _first_line(command: Callable[..., None]) -> str:
    return (command.__doc__ or "").splitlines()[0]


def _overview() -> str:
    lines = ["usage: flowbench COMMAND [--debug] ...", ""]
    lines += [f"  {name:<9} {_first_line(command)}" for name, command in COMMANDS.items()]
    lines += ["", "flowbench COMMAND --help tells the options; --debug shows an error's traceback."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
