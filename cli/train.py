"""lmms train."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from lmms.cli import ui
from lmms.cli.dry_run import show as show_dry_run
from lmms.configs import errors
from lmms.configs.errors import ConfigError, TrainError
from lmms.configs.load import load_config, to_yaml
from lmms.configs.train import TrainConfig

if TYPE_CHECKING:
    from lmms.train.metrics import StepLog
    from lmms.train.run import Report

_STOPPED = 128 + signal.SIGTERM
"""What a shell reports of a process that SIGTERM ended. The run is saved and goes on with the same command."""

_END_S = 10
"""For a rank to end once its last checkpoint is written, or the time for that is over."""

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 32


def train(
    config: Annotated[Path, typer.Option(help="Run file; `lmms train --config FILE --print-config` shows every key.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings that win over the file's.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="auto|never|DIR", help="The setting `resume`, which wins over the file's.")
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine; torchrun starts its own.")] = 1,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print memory by component, length and waiting, and stop. Needs no GPU.")
    ] = False,
    card: Annotated[
        str | None, typer.Option(metavar="NAME", help='Of --dry-run: "H100 80GB", ...; default: the card here, or all.')
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Of --dry-run: ranks supposed; default: WORLD_SIZE, or --nproc.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Of --dry-run: print it as JSON.")] = False,
) -> None:
    """Train on shards, resuming from the newest complete checkpoint.

    Example: lmms train --config run.yaml optim.lr=2e-5 max_steps=100
    """
    # It would end a process that does not listen yet. Ranks inherit this, and take it when they do.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    values = {} if resume is None else {"resume": resume}
    settings = load_config(TrainConfig, config, overrides or (), values)
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
    elif dry_run:
        # Ranks that torchrun started would all say the same.
        if os.environ.get("RANK", "0") == "0":
            supposed = ranks or int(os.environ.get("WORLD_SIZE", nproc))
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


def _train_here(settings: TrainConfig) -> bool:
    from lmms.train.run import train

    with _view() as report:
        return train(settings, report)


def _rank(settings: TrainConfig) -> None:
    """What each launched process runs; why it failed goes to the launcher, which stops the others."""
    from torch.distributed.elastic.multiprocessing.errors import record

    record(_train_here)(settings)


def _pass_on() -> None:
    """SIGUSR1 of a scheduler reaches the launcher; it is meant for the ranks. Never returns."""
    while True:
        signal.sigwait({signal.SIGUSR1})
        for rank in multiprocessing.active_children():
            if rank.pid:
                os.kill(rank.pid, signal.SIGUSR1)


def _launch(settings: TrainConfig, nproc: int) -> None:
    """Start the ranks with torch's own launcher and wait for them; the first error of any rank is raised here."""
    import logging

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from lmms.train.resume import is_saved

    # Each rank would take every core for itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or nproc) // nproc, 1)))
    # They repeat at length what is raised below.
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
        # The launcher has passed it on, and waited for the ranks to save.
        saved = stopped.sigval != signal.SIGTERM or is_saved(Path(settings.output).expanduser())
        raise typer.Exit(128 + (stopped.sigval if saved else signal.SIGKILL)) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # What `record` stored; plain text if the rank was killed.
        stored: Any = failure.message
        found = stored["message"] if isinstance(stored, dict) else stored
        kind, _, text = found.partition(": ")
        if hasattr(errors, kind):
            raise getattr(errors, kind)(f"rank {rank}: {text}") from error
        raise TrainError(f"rank {rank} failed: {found}; --debug shows where") from error


@contextmanager
def _view() -> Iterator["Report"]:
    """A live view of the run on a terminal, plain lines elsewhere."""
    out = ui.console()
    logs: list[StepLog] = []
    if not out.is_terminal:

        def write(event: "StepLog | str") -> None:
            if not isinstance(event, str):
                logs.append(event)
            print(event if isinstance(event, str) else _line(logs), flush=True)

        yield write
        return
    with Live(console=out, refresh_per_second=4) as live:

        def show(event: "StepLog | str") -> None:
            if isinstance(event, str):
                live.console.print(escape(event), style="bold red" if event.startswith("ALARM") else "dim")
            else:
                logs.append(event)
                live.update(_panel(logs))

        yield show


def _line(logs: Sequence["StepLog"]) -> str:
    facts = "  ".join(f"{name} {text}" for name, text in _facts(logs[-1]))
    return f"step {logs[-1].step}/{logs[-1].steps}  {facts}  {_left(logs)}".rstrip()


def _left(logs: Sequence["StepLog"]) -> str:
    """The time that the steps to come will take, if they take what those so far took."""
    first, last = logs[0], logs[-1]
    if first is last:
        return ""
    return f"{ui.duration((last.time - first.time) / (last.step - first.step) * (last.steps - last.step))} left"


def _panel(logs: Sequence["StepLog"]) -> Group:
    """Progress with the time left, the curve of the loss, and the facts of the newest step."""
    last = logs[-1]
    head = Table.grid(padding=(0, 2))
    head.add_row(
        f"[bold]step {last.step:,}[/] of {last.steps:,}",
        ProgressBar(last.steps, last.step, width=_CURVE_WIDTH),
        f"{last.step / last.steps:.0%}",
        f"[dim]{_left(logs)}[/]",
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_row("[dim]curve[/]", f"[cyan]{_curve([log.loss for log in logs])}[/]")
    for name, text in _facts(last):
        facts.add_row(f"[dim]{name}[/]", text)
    return Group(head, facts)


def _facts(log: "StepLog") -> list[tuple[str, str]]:
    """Name and value of all that is worth a line, in reading order."""
    parts = {"llm": log.grad_norm_llm, "vision": log.grad_norm_vision, "aligner": log.grad_norm_aligner}
    by_part = ", ".join(f"{part} {norm:.3g}" for part, norm in parts.items() if norm is not None)
    return [
        ("loss", f"{log.loss:.4f}"),
        ("lr", f"{log.lr:.3g}"),
        ("gradient", f"{log.grad_norm:.3g} ({by_part})"),
        ("tokens", f"{ui.count(log.tokens)}, {log.target_tokens / log.tokens:.0%} targets"),
        ("speed", f"{ui.count(log.tokens_per_s)} tokens/s, {log.data_wait:.0%} waiting for data"),
        ("memory", f"{log.memory / 1e9:.2f} GB"),
        ("epoch", f"{log.epoch:.3f} ({log.position:,} packs)"),
        *([("sets", ", ".join(f"{name} {_loss(one.loss)}" for name, one in log.sets.items()))] if log.sets else []),
        *([("evaluation", f"{log.eval_loss:.4f}")] if log.eval_loss is not None else []),
        *([("masked", f"{log.masked} conversations with a bad image")] if log.masked else []),
    ]


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def _curve(losses: Sequence[float]) -> str:
    """The whole run so far in one line of bars, each the mean of an equal share of the steps."""
    width = min(len(losses), _CURVE_WIDTH)
    cuts = [round(i * len(losses) / width) for i in range(width + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)
