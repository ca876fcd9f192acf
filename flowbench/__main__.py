"""The command line; each command imports the heavy modules that it needs."""

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from flowbench.errors import Interrupted, UsageError
from flowbench.terminal import COMPLETING, Parser, amount, natural, positive, say, seconds

INTERRUPTED = 130
FAULT = 3
RESULTS = Path("results")
BENCHES = {
    "transform": (10, "the spline against those of other libraries"),
    "train": (5, "a training step, with and without kernels, and the loss in bf16"),
    "sample": (5, "drawing images"),
    "decoding": (10, "ways to invert the flows of runs"),
    "sweep": (1, "a study with one worker and with two"),
    "report": (3, "the report of 200 runs"),
    "start": (10, "the command line's start, and reading MNIST"),
}
"""Subjects of ``bench``: their usual number of repeats, and what they measure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status.

    0 is success, 2 an error that the message explains, 3 a fault of flowbench, 130 a signal.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if COMPLETING in os.environ:
        arguments = _completed(arguments)
    debug = "--debug" in arguments
    command, *rest = [a for a in arguments if a != "--debug"] or ["--help"]
    if command in ("-h", "--help"):
        print(_overview())
        return 0
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        if command not in COMMANDS:
            raise UsageError(f"unknown command {command!r}: valid are {', '.join(COMMANDS)}")
        _check_given(rest)
        _give_home()
        COMMANDS[command](rest)
    except KeyboardInterrupt as stopped:
        say(" ".join(str(stopped).split()) or "stopped")
        return INTERRUPTED
    except BrokenPipeError:  # what reads the output, such as head, wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UsageError, OSError) as error:
        if debug:
            raise
        say(f"error: {' '.join(str(error).split())}")
        return 2
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        say(f"error: {what}; this is a fault of flowbench; --debug shows where")
        return FAULT
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def train(arguments: Sequence[str]) -> None:
    """Train, test and record one experiment."""
    from flowbench import parsing
    from flowbench.config import Experiment

    parser = parsing.experiment_parser("flowbench train", _first_line(train))
    _add_results(parser)
    parser.add_argument("--resume", metavar="RUN", help="continue this stopped run")
    if "--help-all" in arguments:
        print(parser.format_help())
        return
    if {"-h", "--help"} & set(arguments):
        print(parsing.short_help(parser))
        return
    experiment, parsed = parsing.parse(parser, arguments)
    say("loading torch and lightning")
    from flowbench.experiment import run
    from flowbench.tracking.store import Store

    if parsed.resume and experiment != Experiment():
        raise UsageError("--resume uses the recorded options: give no others")
    store = Store(parsed.results)
    if parsed.resume:
        experiment = store.experiment(parsed.resume)
    try:
        record = run(experiment, store, resume=parsed.resume)
    except Interrupted as stopped:
        if not stopped.run_id:
            raise  # the first process prints the command that resumes
        raise _with_command(
            stopped, ["train", "--resume", stopped.run_id], parsed.results
        ) from None
    if not record.run_id:
        return  # the first process prints the result
    print(f"run {record.run_id}")
    for key in ("test/bpd", "test/loss", "test/prior", "test/logdet"):
        if key in record.metrics:
            print(f"{key} {record.metrics[key]:.4f}")


def sweep(arguments: Sequence[str]) -> None:
    """Run what is missing of a study, then report it."""
    parser = _parser("sweep", sweep)
    _add_study(parser)
    parser.add_argument(
        "--workers",
        type=positive,
        default=os.environ.get("FLOWBENCH_WORKERS"),
        help="processes; default: FLOWBENCH_WORKERS, or one a GPU or core",
    )
    _add_storage(parser)
    parser.add_argument("--trials", type=positive, help="their number, unless the study is a grid")
    parser.add_argument(
        "--new-version", action="store_true", help="start a new version; keep the old one"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would run, and run nothing"
    )
    parser.add_argument("--price", type=amount, help="of a worker's hour: --dry-run says the cost")
    parser.add_argument(
        "--budget", type=seconds, metavar="TIME", help="2h: start no trial that would not end in it"
    )
    parser.add_argument(
        "--retry", choices=["failed"], help="try failed trials again; those of a grid always are"
    )
    parsed = parser.parse_args(arguments)
    from flowbench.study import read

    study = read(parsed.study, parsed.scale)
    say(f"study {study.name}: {study.cost}")
    if parsed.dry_run:
        from flowbench.sweep.preview import preview

        for line in preview(study, parsed.results, parsed.trials, parsed.price):
            print(line)
        return
    if parsed.price:
        raise UsageError("--price is not valid without --dry-run, which says what a study costs")
    from flowbench.sweep import parent
    from flowbench.tracking.locks import shown
    from flowbench.tracking.store import Store

    options = {key: getattr(parsed, key) for key in ("storage", "workers", "trials")}
    try:
        parent.sweep(
            study,
            Store(parsed.results),
            **options,
            new_version=parsed.new_version,
            budget=parsed.budget,
            retry=parsed.retry is not None,
        )
    except Interrupted as stopped:
        again = ["sweep", str(parsed.study), "--scale", parsed.scale]
        again += [f"--{key}={shown(str(value))}" for key, value in options.items() if value]
        raise _with_command(stopped, again, parsed.results) from None
    report([study.name, "--results", str(parsed.results)])


def submit(arguments: Sequence[str]) -> None:
    """Run a study by jobs of a cluster, with one worker each."""
    parser = _parser("submit", submit)
    _add_study(parser)
    _add_storage(parser)
    parser.add_argument("--jobs", type=positive, required=True, help="their number")
    parser.add_argument("--cluster", default="slurm", choices=("slurm", "local"), help="where")
    parser.add_argument(
        "--set",
        action="append",
        type=_assignment,
        default=[],
        metavar="KEY=VALUE",
        help="an option of submitit's: timeout_min=720, slurm_partition=gpu, gpus_per_node=1",
    )
    parsed = parser.parse_args(arguments)
    from flowbench.study import read

    name = read(parsed.study, parsed.scale).name
    from flowbench.sweep.jobs import submit as send

    command = ["sweep", str(parsed.study), "--scale", parsed.scale, "--workers", "1"]
    command += ["--results", str(parsed.results.resolve())]
    logs = parsed.results / "logs" / name / "jobs"
    options = dict(parsed.set)
    jobs = send(command, parsed.jobs, parsed.cluster, options, logs, parsed.storage)
    for job in jobs:
        print(f"job {job.job_id}: {job.paths.stderr}")


def report(arguments: Sequence[str]) -> None:
    """Make the report of a study, or without a study the page over all of them."""
    from flowbench.report.__main__ import main as make

    make(arguments)


def evaluate(arguments: Sequence[str]) -> None:
    """Measure likelihood and samples of a run or a checkpoint; record those of a finished run."""
    parser = _parser("evaluate", evaluate)
    _add_run(parser)
    for key, words in {
        "draws": "passes over the test images, each with its own noise",
        "bayes": "test images to classify by Bayes' rule; 0: none",
        "samples": "images to generate for FID and its like; 0: none",
        "latents": "training and test images whose noise is measured; 0: none",
    }.items():
        parser.add_argument(f"--{key}", type=natural, help=f"{words}; default: as the run's own")
    parser.add_argument("--inception-weights", metavar="FILE", help="of torch-fidelity's Inception")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.add_argument("--out", type=Path, help="directory for the tables and images")
    parsed = parser.parse_args(arguments)
    say("loading torch and lightning")
    from flowbench.measure import evaluate as measure
    from flowbench.tracking.store import Store

    keys = ("draws", "bayes", "samples", "latents", "inception_weights")
    given = {key: getattr(parsed, key) for key in keys if getattr(parsed, key) is not None}
    metrics = measure(parsed.run, Store(parsed.results), given, parsed.device, parsed.out)
    for key, value in metrics.items():
        print(f"{key} {value:.5g}")


def sample(arguments: Sequence[str]) -> None:
    """Draw images from a run or a checkpoint."""
    parser = _parser("sample", sample)
    _add_run(parser)
    _add_sampling(parser)
    parsed = parser.parse_args(arguments)
    say("loading torch and lightning")
    import torch

    from flowbench.checkpoint import load
    from flowbench.decoding import Decoding, Guidance
    from flowbench.evaluation import pictures, sampling
    from flowbench.tracking.store import Store

    pictures.form(parsed.out)
    how = sampling.Sampling(
        parsed.seed,
        parsed.temperature,
        parsed.truncation,
        Guidance(parsed.guidance, parsed.guidance_schedule, parsed.attention_temperature),
        Decoding(parsed.segment, parsed.tolerance, parsed.iterations),
        bf16=parsed.bf16,
    )
    if parsed.attention_temperature != 1 and not parsed.guidance:
        raise UsageError("--attention-temperature is that of guidance: give --guidance above 0 too")
    module = load(Store(parsed.results).checkpoint_of(parsed.run), parsed.device)
    flow, data = module.flow, module.experiment.data
    if parsed.denoise:
        if data.noise != "gaussian":
            raise UsageError(f"--denoise needs a flow of Gaussian noise: data.noise = {data.noise}")
        how = replace(how, denoise_std=data.noise_std)
    if parsed.guidance and flow.classes and not module.experiment.optim.label_dropout:
        say("this flow was trained without optim.label_dropout: its unguided pass is untrained")
    for label in parsed.classes or []:
        if label >= flow.classes:
            valid = f"0 to {flow.classes - 1}" if flow.classes else "none, for the flow has none"
            raise UsageError(f"--class {label} is not valid: {valid}")
    columns = parsed.classes or [*range(flow.classes)] or [-1] * sampling.UNLABELLED_COLUMNS
    if parsed.trajectory:
        images = sampling.trajectory(flow, torch.tensor(columns), how, parsed.batch).flatten(0, 1)
    else:
        images = sampling.draw(flow, torch.tensor(columns * parsed.rows), how, parsed.batch)
    pixels = sampling.to_pixels(images)
    pictures.save(pixels.reshape(-1, len(columns), *pixels.shape[1:]), columns, parsed.out)
    print(parsed.out)


def latents(arguments: Sequence[str]) -> None:
    """Show what the latents of a run or a checkpoint mean: a page with maps and pictures."""
    parser = _parser("latents", latents)
    _add_run(parser)
    parser.add_argument("--out", type=Path, default=Path("latents"), help="directory of the page")
    parser.add_argument("--images", type=positive, default=2000, help="images of each part")
    parser.add_argument("--seed", type=natural, default=0, help="seed of the samples")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parsed = parser.parse_args(arguments)
    say("loading torch and lightning")
    from flowbench.measure import latents as explore
    from flowbench.report.latents import write
    from flowbench.tracking.store import Store

    store = Store(parsed.results)
    found = explore(parsed.run, store, parsed.images, parsed.seed, parsed.device)
    print(write(found, parsed.run, parsed.out))


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="samples.png", help="a .png, a .npy or a directory/")
    parser.add_argument("--class", dest="classes", type=_classes, help="0,3,7; default: all")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--rows", type=positive, default=10, help="images of each class")
    shown.add_argument("--trajectory", action="store_true", help="rows: noise on its way to images")
    for option, default, words in (
        ("--temperature", 1.0, "scales the noise"),
        ("--truncation", None, "T: noise within [-T, T]; default: anywhere"),
        ("--guidance", 0.0, "W in params = c + W (c - u): c with the label, u without"),
        ("--attention-temperature", 1.0, "that of the pass without the label; 1: as trained"),
        ("--tolerance", 0.0, "largest change in a sweep that ends a segment"),
    ):
        parser.add_argument(option, type=_number, default=default, help=words)
    schedule = ("constant", "linear")
    parser.add_argument("--guidance-schedule", choices=schedule, default="constant", help="of W")
    parser.add_argument(
        "--segment", type=_segment, default=1, help="patches solved together: N, whole"
    )
    parser.add_argument("--iterations", type=positive, help="most sweeps over a segment")
    parser.add_argument("--denoise", action="store_true", help="take off the noise of training")
    parser.add_argument("--bf16", action="store_true", help="networks in bfloat16: pays on GPUs")
    parser.add_argument("--seed", type=natural, default=0, help="seed of the noise")
    parser.add_argument("--batch", type=positive, help="images at a time")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")


def _assignment(text: str) -> tuple[str, Any]:
    key, found, value = text.partition("=")
    if not found or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: KEY=VALUE")
    import yaml

    return key, yaml.safe_load(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: a number") from None


def _segment(text: str) -> int | None:
    if text.isdigit() and int(text):
        return int(text)
    if text == "whole":
        return None
    raise argparse.ArgumentTypeError(f"{text!r} is not valid: an integer of at least 1, or whole")


def _classes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: classes such as 0,3,7")
    return [int(part) for part in parts]


def ui(arguments: Sequence[str]) -> None:
    """Browse the recorded runs with MLflow's own pages."""
    parser = _parser("ui", ui)
    _add_results(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on")
    parsed = parser.parse_args(arguments)
    from flowbench.tracking.server import serve

    serve(parsed.results, parsed.host, parsed.port)


def runs(arguments: Sequence[str]) -> None:
    """List the recorded runs, the newest first."""
    parser = _parser("runs", runs)
    parser.add_argument("--count", type=positive, default=30, help="runs at most")
    _add_results(parser)
    parsed = parser.parse_args(arguments)
    from flowbench import inspection
    from flowbench.tracking.store import Store

    print(inspection.runs(Store(parsed.results), parsed.count))


def show(arguments: Sequence[str]) -> None:
    """Show a run: its options, curves, results and files."""
    parser = _parser("show", show)
    parser.add_argument("run", help="a recorded run")
    _add_results(parser)
    parsed = parser.parse_args(arguments)
    from flowbench import inspection
    from flowbench.tracking.store import Store

    print(inspection.run(Store(parsed.results), parsed.run))


def register(arguments: Sequence[str]) -> None:
    """Register a trained flow as a model of MLflow: a run's, or a study's best in validation."""
    parser = _parser("register", register)
    parser.add_argument("of", metavar="RUN", help="a finished run, or a study such as bins/quick")
    parser.add_argument("--name", help="name of the model; default: the study's")
    parser.add_argument("--alias", help="alias of this version, such as best")
    _add_results(parser)
    parsed = parser.parse_args(arguments)
    say("loading torch and mlflow")
    from flowbench.registry import register as log
    from flowbench.tracking.store import Store

    run_id, address = log(Store(parsed.results), parsed.of, parsed.name, parsed.alias)
    print(f"run {run_id}")
    print(f"mlflow.pytorch.load_model({address!r})")


def import_(arguments: Sequence[str]) -> None:
    """Record runs that were trained without a store, as make gpu-check leaves them."""
    parser = _parser("import", import_)
    parser.add_argument("places", nargs="+", type=Path, metavar="FILE", help="or a directory")
    _add_results(parser)
    parsed = parser.parse_args(arguments)
    say("loading torch and lightning")
    from flowbench.importing import bring
    from flowbench.tracking.store import Store

    for run_id in bring(parsed.places, Store(parsed.results)):
        print(f"run {run_id}")


def doctor(arguments: Sequence[str]) -> None:
    """Say what flowbench finds here: versions, kernels, GPU, store, data; and what is missing."""
    parser = _parser("doctor", doctor)
    parser.add_argument("--root", type=Path, default=Path("data"), help="directory of the data")
    _add_results(parser)
    parsed = parser.parse_args(arguments)
    from flowbench import inspection

    for name, there, words in inspection.doctor(parsed.results, parsed.root):
        print(f"{'✓' if there else '–'} {name:<18} {words}")


def bench(arguments: Sequence[str]) -> None:
    """Measure splines, training, sampling, sweeps, reports; compared cases take turns."""
    parser = _parser("bench", bench)
    subjects_help = "; ".join(f"{name}: {words}" for name, (_, words) in BENCHES.items())
    parser.add_argument("subject", choices=BENCHES, help=subjects_help)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="decoding: runs or checkpoints")
    usual = ", ".join(f"{name} {repeats}" for name, (repeats, _) in BENCHES.items())
    parser.add_argument("--repeats", type=positive, help=f"rounds that count; default: {usual}")
    _add_results(parser)
    parsed = parser.parse_args(arguments)
    if bool(parsed.runs) != (parsed.subject == "decoding"):
        raise UsageError("bench decoding takes runs or checkpoints, the other subjects none")
    say("loading torch")
    from flowbench.bench import subjects
    from flowbench.bench.record import record

    repeats = parsed.repeats or BENCHES[parsed.subject][0]
    for name, rows in subjects.tables(parsed.subject, parsed.runs, repeats, parsed.results):
        for path in record(name, rows, parsed.results):
            print(path)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "latents": latents,
    "sweep": sweep,
    "submit": submit,
    "report": report,
    "runs": runs,
    "show": show,
    "import": import_,
    "register": register,
    "ui": ui,
    "bench": bench,
    "doctor": doctor,
}


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Let SIGTERM end a command as Ctrl-C does."""
    raise KeyboardInterrupt


def _give_home() -> None:
    """Make a home directory where the system knows none, as in some containers.

    Several libraries cannot be imported without.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.mkdtemp(prefix="flowbench-home-")
        say(f"HOME is not set: compiled kernels are kept in {os.environ['HOME']}, for now")


def _check_given(arguments: Sequence[str]) -> None:
    """Refuse an empty value, which would read as an option that was left out."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        name, equals, value = argument.partition("=")
        if not (value if equals and name.startswith("--") else argument).strip():
            raise UsageError(f"{name or before or 'an argument'} is empty: give a value")


def _with_command(stopped: Interrupted, command: Sequence[str], results: Path) -> Interrupted:
    """Add the command that continues the work."""
    elsewhere = [] if results == RESULTS else ["--results", str(results)]
    again = shlex.join(["flowbench", *command, *elsewhere])
    return Interrupted(f"{stopped}; continue with: {again}", stopped.run_id)


def _parser(name: str, command: Callable[..., None]) -> argparse.ArgumentParser:
    return Parser(prog=f"flowbench {name}", description=_first_line(command))


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="directory of the recorded runs"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a recorded run, a checkpoint or a pretrained flow")
    _add_results(parser)


def _add_study(parser: argparse.ArgumentParser) -> None:
    words = "a study file, or the name of one that comes with flowbench, such as bins"
    parser.add_argument("study", type=Path, help=words).completer = _studies  # type: ignore[attr-defined]
    parser.add_argument("--scale", default="quick", help="quick, medium or full")
    _add_results(parser)


def _studies(**_: object) -> list[str]:
    """Name the studies that come with flowbench, for a shell that completes a line."""
    from flowbench.study import STUDIES

    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        metavar="URL",
        default=os.environ.get("FLOWBENCH_STORAGE"),
        help="Optuna's, to share between machines; default: FLOWBENCH_STORAGE, or a file",
    )


def _completed(arguments: list[str]) -> list[str]:
    """Complete the name of a command; return the command whose options are to be completed."""
    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    *before, _ = line.split(" ")
    command = before[1] if len(before) > 1 else ""
    if command not in COMMANDS:
        parser = Parser(prog="flowbench")
        parser.add_argument("command", choices=COMMANDS)
        parser.parse_args(arguments)
    os.environ[COMPLETING] = "2"  # the command is a part of the program's name
    return [command]


def _first_line(command: Callable[..., None]) -> str:
    return (command.__doc__ or "").splitlines()[0]


def _overview() -> str:
    lines = ["usage: flowbench COMMAND [--debug] ...", ""]
    lines += [f"  {name:<9} {_first_line(command)}" for name, command in COMMANDS.items()]
    lines += ["", "flowbench COMMAND --help lists the options; --debug shows an error's traceback."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
