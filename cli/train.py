"""lmms train."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lmms.cli.dry_run import show as show_dry_run
from lmms.cli.settings import options_of, read_settings
from lmms.configs import errors
from lmms.configs.errors import ConfigError, TrainError
from lmms.configs.load import load_config, to_yaml
from lmms.configs.settings.train import TrainConfig

_STOPPED = 128 + signal.SIGTERM
"""Exit code in a shell of a process ended by SIGTERM. The run is saved and goes on with the same command."""

_END_S = 10
"""Seconds for a rank to end, after its last checkpoint or the time for that checkpoint."""


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE|KEY=VALUE",
            help="Run file, and settings that win over it; docs/settings.md has all of them.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="The run file, if not named first.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="auto|never|DIR", help="The setting `resume`, which wins over the file's.")
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine; torchrun starts its own.")] = 1,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print memory by component, length and waiting, and stop. Needs no GPU.")
    ] = False,
    card: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help='For --dry-run: "H100 80GB", ...; default: the card of this machine, or all.'
        ),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="For --dry-run: number of ranks; default: WORLD_SIZE, or --nproc.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For --dry-run: print JSON.")] = False,
) -> None:
    """Train on shards, resuming from the newest complete checkpoint.

    A setting is written as optim.lr=2e-5 or --optim.lr 2e-5.

    Example: lmms train run.yaml optim.lr=2e-5 max_steps=100
    """
    file, overrides = _run_file(config, words or ())
    settings = load_config(TrainConfig, file, overrides, {} if resume is None else {"resume": resume})
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
    elif dry_run:
        # Ranks that torchrun started would all say the same.
        if os.environ.get("RANK", "0") == "0":
            from lmms.train.parallel.launched import whole_number

            supposed = ranks or whole_number("WORLD_SIZE", nproc, least=1)
            if not show_dry_run(settings, supposed, card, as_json=as_json):
                raise typer.Exit(1)
    elif card or ranks or as_json:
        raise ConfigError("--card, --ranks and --json belong to --dry-run")
    elif nproc == 1:
        if not _train_here(settings):
            raise typer.Exit(_STOPPED)
    elif "RANK" in os.environ:
        raise ConfigError("--nproc starts ranks, but torchrun has already started this one; leave --nproc out")
    else:
        _launch(settings, nproc)


def _run_file(config: Path | None, words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The run file, if one is named, and the settings among the words of the command line."""
    others, settings = read_settings(words, TrainConfig, options_of(train))
    files = [*([config] if config else []), *map(Path, others)]
    if len(files) > 1:
        raise ConfigError(
            f"{', '.join(map(str, files))}: expected one run file and settings as KEY=VALUE, such as optim.lr=1e-5;"
            " a run file takes in others by its key extends"
        )
    return (files[0] if files else None), settings


def _train_here(settings: TrainConfig) -> bool:
    from lmms.cli.live.view import view

    with view(Path(settings.output).expanduser()) as say:
        if os.environ.get("RANK", "0") == "0":
            _check(settings)
            say("loading torch and transformers ...")
        from lmms.train.run import train

        return train(settings, say)


def _check(settings: TrainConfig) -> None:
    from lmms.train.plan.checks import check_run

    check_run(settings)


def _rank(settings: TrainConfig) -> None:
    """The work of each launched process; an error goes to the launcher, which stops the other ranks."""
    from torch.distributed.elastic.multiprocessing.errors import record

    record(_train_here)(settings)


def _pass_on() -> None:
    """Pass SIGUSR1, which a scheduler sends to the launcher, on to the ranks. Never returns."""
    while True:
        signal.sigwait({signal.SIGUSR1})
        for rank in multiprocessing.active_children():
            if rank.pid:
                os.kill(rank.pid, signal.SIGUSR1)


def _launch(settings: TrainConfig, nproc: int) -> None:
    """Start the ranks with torch's own launcher and wait for them; the first error of any rank is raised here."""
    import logging

    _check(settings)
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from lmms.train.checkpoint.resume import is_saved

    # Each rank would take every core for itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or nproc) // nproc, 1)))
    # These loggers repeat at length the error that is raised below.
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # The launcher would kill ranks that are still writing their last checkpoint.
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(math.ceil(settings.grace_s) + _END_S)
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
    )
    threading.Thread(target=_pass_on, name="signals", daemon=True).start()
    try:
        elastic_launch(launch, _rank)(settings)
    except SignalException as stopped:
        # The launcher has passed the signal on, and waited for the ranks to save.
        saved = stopped.sigval != signal.SIGTERM or is_saved(Path(settings.output).expanduser())
        raise typer.Exit(128 + (stopped.sigval if saved else signal.SIGKILL)) from None
    except ChildFailedError as error:
        rank, message = _first_failure(_with_siblings(error.failures))
        kind, _, text = message.partition(": ")
        if hasattr(errors, kind):
            raise getattr(errors, kind)(f"rank {rank}: {text}") from error
        raise TrainError(f"rank {rank} failed: {message}; --debug shows where") from error


def _with_siblings(failures: Mapping[int, Any]) -> dict[int, Any]:
    """The failures that torch tells of, and those of the other ranks that stored an error.

    torch tells of one rank, whichever it meets first: on a busy machine, of ranks that ended because another did.
    """
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    every = dict(failures)
    for failure in failures.values():
        for file in Path(failure.error_file).parent.parent.glob("*/error.json"):
            rank = int(file.parent.name)
            every.setdefault(rank, ProcessFailure(local_rank=rank, pid=0, exitcode=1, error_file=str(file)))
    return every


def _first_failure(failures: Mapping[int, Any]) -> tuple[int, str]:
    """The rank that failed first, and its message.

    torch gives times in whole seconds: among failures of one second, a rank with an error of lmms comes first, since
    the end of that rank breaks the connections of the others.
    """
    said = {}
    for rank, failure in failures.items():
        # The message that `record` stored; plain text if the rank was killed.
        stored = failure.message
        said[rank] = stored["message"] if isinstance(stored, dict) else stored
    first = min(
        failures, key=lambda rank: (failures[rank].timestamp, not hasattr(errors, said[rank].partition(": ")[0]))
    )
    return first, said[first]
