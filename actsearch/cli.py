"""The command line: one function per verb. Importing this does not import torch; the verbs do, once they run."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from actsearch import __version__, options
from actsearch.config import SearchConfig, TransferConfig
from actsearch.errors import ActsearchError, RunError, SettingsError, UnknownNameError, without_passwords
from actsearch.files import check_end, named_files
from actsearch.launched import check_started_alone

Arguments = Sequence[str]
# Of a search's configuration: compare-strategies has all strategies, and seeds and a folder of its own.
NOT_COMPARED = (
    "strategy",
    "search.seed",
    "run",
    *(f"compare.{name}" for name in ("enabled", "seeds", "first_seed", "save_models")),
)
OWN_OF_RESUME = ("--run.", "--trainer.", "--progress")
AUTO = "auto"  # for --resume
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}  # of a disk that cannot be written
LONGEST = 1000  # characters of an error


def search(arguments: Arguments) -> None:
    """Search an activation function, draw it, and compare it with standard ones."""
    parser = options.make_parser(
        "actsearch search [--config NAME|FILE] [--KEY VALUE ...] [--resume RUN]",
        "Search an activation function, then retrain with it and with standard ones, and compare on the test set. "
        "Options override the configuration.",
    )
    options.add_config(parser, SearchConfig)
    # Taken out before parsing: it says where the configuration is, and is no part of it.
    parser.add_argument(
        "--resume",
        metavar="RUN",
        type=str,
        default=SUPPRESS,
        help="go on with the search in this run directory, with its own settings; auto: with the latest in "
        "run.root/run.name that is of these settings, if there is one, so that the same command begins and goes on",
    )
    options.add_progress(parser)
    run, others = _resumed(arguments)
    config, parsed = options.read_config(parser, others, SearchConfig)
    from actsearch import process, session

    if run == Path(AUTO):
        run = session.latest(config)
        if run is not None:
            own = [option for option in options.dotted(others)[0] if option.startswith(OWN_OF_RESUME)]
            config, _ = options.read_config(parser, [f"--config={_config_of(str(run))}", *own], SearchConfig)
    if run is not None:
        config.space = str(run / "space.yaml")
    with process.speaking(options.progress_of(parsed)):
        session.search(config, run)


def _resumed(arguments: Arguments) -> tuple[Path | None, list[str]]:
    """The run to resume, and the arguments with its configuration in place of the name of one."""
    runs, others = options.taken("--resume", arguments)
    if not runs:
        return None, others
    run = runs[-1]
    if run == AUTO:
        return Path(AUTO), others
    for option in others:
        if option.startswith("--") and not option.startswith(OWN_OF_RESUME):
            raise SettingsError(
                f"--resume goes on with the run's own settings; leave out {option.partition('=')[0]} "
                "(only --run.*, --trainer.* and --progress can be given)"
            )
    return Path(run), [f"--config={_config_of(run)}", *others]


def _config_of(run: str) -> Path:
    for file in ("config.yaml", "space.yaml"):
        if not Path(run, file).is_file():
            raise RunError(f"{run} is not a run: it has no {file}; give a folder such as runs/NAME/DATE")
        check_end(Path(run, file))
    return Path(run, "config.yaml")


def compare_strategies(arguments: Arguments) -> None:
    """Gradient, random, TPE and genetic search over seeds at equal budget, side by side."""
    parser = options.make_parser(
        "actsearch compare-strategies [--strategies NAME,…] [--config NAME|FILE] [--seeds N] [--jobs N] [--out DIR] "
        "[--KEY VALUE ...]",
        "Search with each strategy and seed for the training steps of the gradient search, retrain what was found and "
        "the controls once for each seed, and compare on the test set. --config names a search's configuration. What "
        "is already done is not done again: give the same command to go on.",
    )
    options.add_config(parser, SearchConfig, NOT_COMPARED)
    parser.add_argument(
        "--strategies",
        metavar="NAME,…",
        type=str,
        default="gradient,random,tpe,genetic",
        help="of gradient, random, tpe, genetic; the others are compared with the first",
    )
    parser.add_argument("--seeds", type=int, default=3, help="searches of each, with as many seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="of these")
    parser.add_argument("--jobs", type=int | None, help="short for --compare.jobs: retrainings at a time")
    parser.add_argument("--out", metavar="DIR", type=str | None, help="default: runs/strategies/NAME")
    options.add_progress(parser)
    given, _ = options.taken("--config", arguments)
    config, parsed = options.read_config(parser, arguments, SearchConfig, unused=NOT_COMPARED)
    if parsed.seeds < 1 or parsed.first_seed < 0:
        raise SettingsError("--seeds must be at least 1, and --first-seed at least 0")
    if parsed.jobs is not None:
        config.compare = dataclasses.replace(config.compare, jobs=parsed.jobs)
    check_started_alone("compare-strategies", "--jobs N retrains N functions at a time")
    from actsearch import competing, process

    seeds = range(parsed.first_seed, parsed.first_seed + parsed.seeds)
    name = Path(given[-1]).stem if given else "default"
    with process.speaking(options.progress_of(parsed)):
        competing.compare_strategies(config, _names(parsed.strategies), seeds, name, parsed.out and Path(parsed.out))


def spaces(arguments: Arguments) -> None:
    """List the search spaces, or draw the cell of one."""
    parser = options.make_parser(
        "actsearch spaces [show NAME|FILE] [--png FILE]",
        "Without more, lists the shipped search spaces with the number of slots, of candidate operations, of genotypes "
        "(ways to fill the slots) and of distinct functions among them. `show` draws the cell of one.",
    )
    parser.add_argument("action", nargs="?", choices=["list", "show"], default="list", help="what to do")
    parser.add_argument("name", nargs="?", type=str, help="a shipped space, or a YAML file")
    parser.add_argument("--png", metavar="FILE", type=str, help="draw the cell into this file as well")
    given = options.parse(parser, arguments)
    if (given.action == "show") != (given.name is not None) or (given.png and given.action != "show"):
        raise SettingsError("say `spaces`, or `spaces show NAME` with or without --png FILE")
    from actsearch import viewing

    if given.action == "list":
        viewing.list_spaces()
    else:
        viewing.show_space(given.name, given.png and Path(given.png))


def show(arguments: Arguments) -> None:
    """Formula, derivative, facts and picture of a discovered function."""
    parser = options.make_parser(
        "actsearch show RUN|FILE [--png FILE]",
        "Formula, derivative, limits and other facts of a discovered function, and a picture of it with its first and "
        "second derivative over the inputs that the searched network gave it.",
    )
    parser.add_argument("source", metavar="RUN|FILE", type=str, help="a run directory, or a genotype.json")
    parser.add_argument("--png", metavar="FILE", type=str, help="where to draw; default: beside the genotype")
    given = options.parse(parser, arguments)
    from actsearch import viewing

    viewing.show(Path(given.source), given.png and Path(given.png))


def report(arguments: Arguments) -> None:
    """One page of a run or a comparison, to read in a browser."""
    parser = options.make_parser(
        "actsearch report RUN|COMPARISON [--out FILE] [--open]",
        "Writes one HTML file that needs nothing else: the formula and its curves, how the search came to it, the "
        "comparison with its intervals, costs, settings, and what to be careful about. Search and transfer write it by "
        "themselves; of a run that was stopped it shows what there is.",
    )
    parser.add_argument(
        "source", metavar="RUN|COMPARISON", type=str, help="a run directory, or a folder with a comparison.json"
    )
    parser.add_argument("--out", metavar="FILE", type=str, help="default: report.html in that folder")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    given = options.parse(parser, arguments)
    from actsearch import reporting

    reporting.report(Path(given.source), given.out and Path(given.out), given.open)


def tensorboard(arguments: Arguments) -> None:
    """Open TensorBoard on a run, or on all runs in a folder."""
    parser = options.make_parser(
        "actsearch tensorboard [RUN|ROOT] [--port N] [--host H] [--open]",
        "Serve TensorBoard until Ctrl-C, also of a search that still runs, and print the addresses of what to look at: "
        "the slots side by side, losses, pictures, text, and final scores of all runs in a table.",
    )
    parser.add_argument("source", nargs="?", metavar="RUN|ROOT", type=str, default="runs", help="default: runs")
    parser.add_argument("--port", type=int | None, help="default: the first that is free from 6006 on")
    parser.add_argument("--host", type=str, default="localhost", help="to listen at; 0.0.0.0 for all that can reach it")
    parser.add_argument("--open", action="store_true", help="in the browser")
    given = options.parse(parser, arguments)
    from actsearch import boarding

    boarding.board(Path(given.source), given.port, given.host, given.open)


def transfer(arguments: Arguments) -> None:
    """Retrain what was found and standard activations, on any model and data, and compare."""
    parser = options.make_parser(
        "actsearch transfer [RUN|FILE|zoo:NAME ...] [--adapt NAME,…] [--config NAME|FILE] [--seeds N] [--epochs N] "
        "[--out DIR] [--KEY VALUE ...]",
        "Retrain discovered and standard activations from scratch over several seeds and compare them on the test set. "
        "Without --config, with the data, model and training of RUN, and seeds that its own comparison did not use. "
        "What is already done is not done again: give the same command to go on.",
    )
    listed, arguments = options.taken("--adapt", arguments)
    adapt = [name for names in listed for name in _names(names)]
    parser.add_argument(
        "sources",
        nargs="*" if adapt else "+",
        metavar="RUN|FILE|zoo:NAME",
        help="run directories, genotype files, names of the zoo; may be left out with --adapt",
    )
    parser.add_argument(
        "--adapt",
        metavar="NAME,…",
        type=str | None,
        help="train the model's own activations: taafs:BASIS, the coefficients of bspline, fourier, chebyshev, "
        "legendre, hermite or rbf, which start at the least-squares fit to them; taafs:BASIS:residual, added to them; "
        "taafs:BASIS:K for K coefficients; laaf:site, laaf:channel or laaf:network, slopes before them",
    )
    options.add_config(parser, TransferConfig)
    # Short for what is asked for most; None leaves the configuration as it is.
    parser.add_argument("--seeds", type=int | None, help="short for --compare.seeds")
    parser.add_argument("--epochs", type=int | None, help="short for --compare.epochs")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=str | None,
        help="where results go; default: transfer/NAME in the run directory, or in runs where there is none",
    )
    options.add_progress(parser)
    given, _ = options.taken("--config", arguments)
    run = None if given else _of_run(arguments)
    config, parsed = options.read_config(parser, arguments, TransferConfig, run)
    short = {name: parsed[name] for name in ("seeds", "epochs") if parsed[name] is not None}
    config.compare = dataclasses.replace(config.compare, **short)
    check_started_alone("transfer", "--compare.jobs N retrains N functions at a time")
    from actsearch.process import speaking
    from actsearch.transfer import transfer as retrain_and_compare

    name = Path(given[-1]).stem if given else "own" if run is not None else "default"
    with speaking(options.progress_of(parsed)):
        retrain_and_compare(parsed.sources, config, name, parsed.out and Path(parsed.out), adapt)


def _of_run(arguments: Arguments) -> TransferConfig | None:
    """How the first source was compared, if it is a run, with seeds after those of its own comparison."""
    if not arguments or not Path(arguments[0]).is_dir():
        return None
    source = arguments[0]
    reader = options.make_parser("")
    options.add_config(reader, SearchConfig)
    searched, _ = options.read_config(reader, [f"--config={_config_of(source)}"], SearchConfig)
    searched.space = str(Path(source, "space.yaml"))
    return searched.transferred()


def tune(arguments: Arguments) -> None:
    """Tune the settings of a search or of a retraining, by any number of workers."""
    parser = options.make_parser(
        "actsearch tune [--config NAME|FILE] [--trials N] [--timeout SECONDS] [--workers K] [--storage STORAGE] "
        "[--name NAME] [--threads N] [--KEY VALUE ...]",
        "Find good values of hyper-parameters: a study of trials, each a search or a retraining that is measured on "
        "held-out training data, and ended early if it falls behind. The same command goes on with a study, and joins "
        "it from other terminals and machines that reach its storage; a trial whose worker dies is run again. Any "
        "setting of the search or transfer that is not tuned can be overridden, as --data.root DIR. Results are in "
        "runs/tune/NAME; best.yaml is for --config of search or transfer.",
    )
    settings, others = options.dotted(arguments)
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        type=str,
        default="default",
        help=f"what is tuned: one of {', '.join(named_files('configs/tune'))}, or a YAML file; default: default",
    )
    parser.add_argument("--trials", type=int | None, help="of the whole study; default: as in the configuration")
    parser.add_argument("--timeout", metavar="SECONDS", type=float | None, help="begin no trial after so many")
    parser.add_argument("--workers", metavar="K", type=int, default=1, help="processes on this machine")
    parser.add_argument(
        "--storage",
        type=str | None,
        help="default: study.db in the folder of results; journal:PATH or a file *.log, on a disk that all workers "
        "share; a file *.db of SQLite, for the workers of one machine; or postgresql://USER:PASSWORD@HOST/DATABASE",
    )
    parser.add_argument("--name", type=str | None, help="of the study and its folder; default: of the configuration")
    parser.add_argument("--threads", metavar="N", type=int | None, help="CPU threads of a worker; of several: 1")
    options.add_progress(parser)
    given = options.parse(parser, others)
    check_started_alone("tune", "--workers K, or the same command from elsewhere, has more workers")
    from actsearch.tune.plan import Plan

    plan = Plan.load(given.config)
    name = given.name or Path(given.config).stem
    from actsearch import process, tuning

    work = tuning.Work(
        plan,
        name,
        overrides=tuple(settings),
        storage=given.storage,
        trials=given.trials,
        timeout=given.timeout,
        threads=given.threads,
    )
    with process.speaking(options.progress_of(given)):
        tuning.tune(work, given.workers)


def export(arguments: Arguments) -> None:
    """Write a function as source, NumPy, ONNX, torch.export, sympy, LaTeX or JSON."""
    parser = options.make_parser(
        "actsearch export RUN|FILE|zoo:NAME [--to FORM,…|all] [--out DIR|FILE] [--name NAME] [--trainable] [--force]",
        "Write a function so that it can be used without actsearch. Each form is compared with the activation in value "
        "and, where it has them, in its first and second derivative, over the inputs that the searched network gave it "
        "or [-8, 8]; the greatest errors are printed.",
    )
    parser.add_argument("source", metavar="RUN|FILE|zoo:NAME", type=str, help="a run, a genotype.json, or of the zoo")
    parser.add_argument(
        "--to",
        type=str,
        default="source",
        help="source (Python, needs torch alone), numpy, onnx, torch (torch.export), sympy, latex, json, or all",
    )
    parser.add_argument("--out", metavar="DIR|FILE", type=str, help="default: RUN/export, beside FILE, or this folder")
    parser.add_argument("--name", type=str, help="of the class; default: as in the zoo, or Activation")
    parser.add_argument("--trainable", action="store_true", help="let β and γ be trained (source only)")
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")
    given = options.parse(parser, arguments)
    from actsearch import carrying

    carrying.export(
        given.source, given.to.split(","), given.out and Path(given.out), given.name, given.trainable, given.force
    )


def zoo(arguments: Arguments) -> None:
    """Functions known from the literature, and finds of our own: list, look at, take."""
    parser = options.make_parser(
        "actsearch zoo [show NAME [--png FILE] | use NAME [--out FILE]]",
        "Without more, lists the functions of the zoo. `show` prints formula, derivative and facts of one; `use` "
        "writes its genotype, and says how to use it. actsearch.load and `export` also take zoo:NAME.",
    )
    parser.add_argument("action", nargs="?", choices=["list", "show", "use"], default="list", help="what to do")
    parser.add_argument("name", nargs="?", type=str, help="of a function")
    parser.add_argument("--png", metavar="FILE", type=str, help="with show: draw the function into this file as well")
    parser.add_argument("--out", metavar="FILE", type=str, help="with use: where to write; default: NAME.json")
    given = options.parse(parser, arguments)
    wrong = (given.png and given.action != "show") or (given.out and given.action != "use")
    if (given.action == "list") != (given.name is None) or wrong:
        raise SettingsError("say `zoo`, `zoo show NAME` with or without --png FILE, or `zoo use NAME` [--out FILE]")
    from actsearch import carrying

    if given.action == "list":
        carrying.list_zoo()
    elif given.action == "show":
        carrying.show_zoo(given.name, given.png and Path(given.png))
    else:
        carrying.use_zoo(given.name, given.out and Path(given.out))


def bench(arguments: Arguments) -> None:
    """Time and memory of search steps as multiples of plain training, side by side."""
    parser = options.make_parser(
        "actsearch bench [--workloads NAME,…] [--contestants NAME,…] [--steps weight,alpha] [--repeats N] [--whole] "
        "[--quick] [--out DIR] [--record FILE] [--KEY VALUE ...]",
        "Time and peak memory of weight and α steps, for each contestant and workload, as multiples of ReLU's training "
        "step in the same round; growth with candidates and slots; a whole search against one retraining. Needs a "
        "quiet machine, and minutes. Results are written as they are measured.",
    )
    listed = "default: all"
    parser.add_argument(
        "--workloads", type=str, default="", help=f"of elementwise, resnet20, vit_tiny, minigpt; {listed}"
    )
    parser.add_argument(
        "--contestants",
        type=str,
        default="",
        help=f"of relu, gelu, silu, dense, dense_compiled, table, winner, winner_compiled; {listed}",
    )
    parser.add_argument("--steps", type=str, default="", help=f"of weight, alpha; {listed}")
    parser.add_argument("--repeats", type=int, default=7, help="rounds in which every step is measured in turn")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds that the rounds of one step may take")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a step may take to compile and start")
    parser.add_argument("--threads", type=int | None, help="CPU threads of torch; default: one a core")
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="where to measure")
    parser.add_argument("--space", type=str | None, metavar="NAME|FILE", help="of the mixed cells; default: grafs")
    parser.add_argument(
        "--winner", type=str, default="zoo:fashion_vit", metavar="RUN|FILE|zoo:NAME", help="the discrete function"
    )
    parser.add_argument("--growth", type=bool, default=True, help="the α step at 10 to 300 candidates, 2 to 15 slots")
    parser.add_argument("--no-growth", action="store_true", help="short for --growth false")
    parser.add_argument("--whole", action="store_true", help="extrapolate a whole search and one retraining")
    parser.add_argument("--quick", action="store_true", help="tiny workloads, to see that everything runs")
    parser.add_argument("--out", metavar="DIR", type=str | None, help="default: runs/bench/DATE")
    parser.add_argument("--record", metavar="FILE", type=str | None, help="append a section to this Markdown file")
    options.add_progress(parser)
    given = options.parse(parser, arguments)
    # Counting memory would make torch warn of blocks that are older than the count; read when torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from actsearch import benching, process
    from actsearch.bench.measure import Effort

    wanted = benching.BenchOptions(
        workloads=_names(given.workloads),
        contestants=_names(given.contestants),
        steps=_names(given.steps),
        space=given.space,
        winner=given.winner,
        effort=Effort(given.repeats, given.budget, given.limit),
        quick=given.quick,
        growth=given.growth and not given.no_growth,
        whole=given.whole,
        device=given.device,
        threads=given.threads,
        out=given.out and Path(given.out),
        record=given.record and Path(given.record),
    )
    with process.speaking(options.progress_of(given)):
        benching.bench(wanted)


def md(arguments: Arguments) -> None:
    """Molecular dynamics with trained force fields: energy drift, temperature, g(r)."""
    parser = options.make_parser(
        "actsearch md MODEL ... STRUCTURE [--time-steps FS,…] [--time PS | --steps N] [--temperature K] "
        "[--equilibrate PS] [--supercell N,N,N] [--out DIR] [--seed N] [--data-root DIR] [--double]",
        "Runs at constant energy with each time step from the same start, and tells how the total energy drifts and "
        "fluctuates, the temperature and, of periodic systems, g(r): numbers in md.json, a figure in md.png, and "
        "trajectory.extxyz of the shortest time step. Several models are compared in one table and figure.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="MODEL ... STRUCTURE",
        help="files of trained force fields; then a structure that ase reads, or the name of a data set of frames",
    )
    parser.add_argument("--time-steps", type=str, default="0.25,0.5,1.0", help="fs, with commas between")
    parser.add_argument("--time", type=float | None, help="ps of each trajectory; default: 1")
    parser.add_argument("--steps", type=int | None, help="instead: steps of the longest time step")
    parser.add_argument("--temperature", type=float, default=300.0, help="K, of the first velocities")
    parser.add_argument("--equilibrate", type=float, default=0.0, help="ps of Langevin dynamics at first")
    parser.add_argument("--supercell", type=str, default="1,1,1", help="copies of the cell along its vectors")
    parser.add_argument("--out", metavar="DIR", type=str | None, help="default: runs/md/DATE")
    parser.add_argument("--seed", type=int, default=0, help="of velocities and thermostat")
    parser.add_argument("--data-root", metavar="DIR", type=str | None, help="folder of the data set")
    parser.add_argument("--double", action="store_true", help="compute in float64: rounding adds nothing to the drift")
    options.add_progress(parser)
    given = options.parse(parser, arguments)
    if len(given.paths) < 2:
        raise SettingsError("say `md MODEL STRUCTURE`: a file of a trained force field, and a structure")
    from actsearch import process, simulating

    settings = simulating.Simulation(
        time_steps=_numbers("time-steps", given.time_steps, float),
        time=given.time,
        steps=given.steps,
        temperature=given.temperature,
        equilibrate=given.equilibrate,
        supercell=_numbers("supercell", given.supercell, int),
        seed=given.seed,
        double=given.double,
    )
    *models, structure = given.paths
    with process.speaking(options.progress_of(given)):
        simulating.md(models, structure, settings, given.out and Path(given.out), given.data_root)


def doctor(arguments: Arguments) -> None:
    """Versions, devices, compiler, data and disk: what is there, what is not, and what to do."""
    parser = options.make_parser(
        "actsearch doctor [--data.root DIR] [--run.root DIR] [--no-compile] [--json]",
        "Looks at versions, devices, the compiler, data and disk. Each line is ok, a warning or an error, with what to "
        "do about it. Ends with 1 if there is an error.",
    )
    parser.add_argument("--data.root", metavar="DIR", type=str | None, help="folder of the data that should be there")
    parser.add_argument("--run.root", metavar="DIR", type=str, default="runs", help="folder that runs are written to")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes some seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    given = options.parse(parser, arguments)
    from actsearch import doctor

    root = given.data.root and Path(given.data.root)
    if not doctor.doctor(root, Path(given.run.root), not given.no_compile, given.json):
        raise SystemExit(1)


def _numbers(option: str, listed: str, kind: type) -> list[Any]:
    try:
        return [kind(number) for number in listed.split(",")]
    except ValueError:
        raise SettingsError(f"--{option} takes numbers with commas between, not {listed!r}") from None


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


VERBS: dict[str, Callable[[Arguments], None]] = {
    "search": search,
    "compare-strategies": compare_strategies,
    "spaces": spaces,
    "show": show,
    "report": report,
    "tensorboard": tensorboard,
    "transfer": transfer,
    "tune": tune,
    "export": export,
    "zoo": zoo,
    "bench": bench,
    "md": md,
    "doctor": doctor,
}


def _overview() -> str:
    lines = [f"  {name:<18} {(verb.__doc__ or '').strip()}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            f"actsearch {__version__}: differentiable search for activation functions",
            "",
            "usage: actsearch VERB [OPTION ...]      (or: python -m actsearch VERB [OPTION ...])",
            "",
            *lines,
            "",
            "actsearch VERB --help tells the options of a verb. Start with: actsearch search",
        ]
    )


def main(arguments: Arguments | None = None) -> int:
    """Run a verb; returns the exit code: 0, 1 of a doctor, 2 for what the user can mend, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # not at the exit, where nobody hears that the disk is full
        return code
    except ActsearchError as error:
        _tell(str(error))
        return error.exit_code
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        _silence(sys.stdout)
        return 0
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _silence(sys.stdout)  # if it is our output that cannot be written, it is not tried again
        _tell(f"cannot write {error.filename or 'the output'}: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        print("\nactsearch: interrupted", file=sys.stderr)
        return 130


def _tell(message: str) -> None:
    """An error in one line that fits on a screen."""
    line = without_passwords(" ".join(message.split()))
    with contextlib.suppress(OSError):
        print(f"actsearch: {line if len(line) <= LONGEST else line[: LONGEST - 1] + '…'}", file=sys.stderr)


def _silence(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if arguments[0] not in VERBS:
        raise UnknownNameError("verb", arguments[0], VERBS)
    try:
        VERBS[arguments[0]](arguments[1:])
    except SystemExit as ending:  # --help and --print_config end so
        return int(ending.code or 0)
    return 0
