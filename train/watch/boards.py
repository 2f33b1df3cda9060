"""TensorBoard and wandb: boards that show the numbers of metrics.jsonl, under the same names.

What is asked for must work when the run starts: a missing package, a login or a server that fails is an error there. A
board that fails later does not stop the training, whose record is metrics.jsonl: an alarm says so then and at the end.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmms.configs.errors import TrainError
from lmms.configs.files import write_whole
from lmms.configs.nested import flat
from lmms.configs.settings.log import wandb_mode
from lmms.configs.settings.train import TrainConfig
from lmms.configs.stores.store import shown_setting
from lmms.train.parallel.world import World
from lmms.train.watch.metrics import StepLog, line_of
from lmms.train.watch.watch import Say

TENSORBOARD_NAME = "tensorboard"
WANDB_NAME = "wandb.json"
_UPLOAD_SECONDS = 300.0
"""The longest that a run which has ended waits for wandb; what is not uploaded then stays in the output folder."""


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """A board that is open. Both functions raise OSError where it fails."""

    name: str
    write: Callable[[int, float, Mapping[str, float]], None]
    """Shows one step: its number, seconds since 1970, name -> number."""
    close: Callable[[bool], None]
    """Ends the board; the argument says whether the run ended without an error."""


@contextmanager
def boards(config: TrainConfig, output: Path, world: World, step: int, report: Say) -> Iterator[Say]:
    """`report`, which on rank 0 also shows each step on the boards of a run that goes on after `step`.

    All ranks together. TrainError where a board cannot be opened.
    """
    opened: list[Board] = []
    lost: list[str] = []

    def attempt(board: Board, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            opened.remove(board)
            lost.append(f"ALARM: log.{board.name} failed ({error}) and shows no more; metrics.jsonl has every step")
            report(lost[-1])

    def show(event: StepLog | str) -> None:
        if isinstance(event, StepLog):
            for board in list(opened):
                attempt(board, partial(board.write, event.step, event.time, numbers(event)))
        report(event)

    def close(well: bool) -> None:
        for board in list(opened):
            attempt(board, partial(board.close, well))

    try:
        world.once(lambda: _open(opened, config, output, step, report))
        yield show
    except BaseException:
        close(False)
        raise
    # A board that is lost at the very end is reported by close.
    for sentence in list(lost):
        report(sentence)
    close(True)


def numbers(log: StepLog) -> dict[str, float]:
    """Every number of a step's line in metrics.jsonl under its key, inner keys after a slash; of alarms, how many."""
    line = {**flat(line_of(log), "/"), "alarms": len(log.alarms)}
    known = {name: value for name, value in line.items() if isinstance(value, int | float)}
    return {name: value for name, value in known.items() if name not in ("step", "time")}


def _open(opened: list[Board], config: TrainConfig, output: Path, step: int, report: Say) -> None:
    """Append the boards that are asked for, as they open."""
    if config.log.tensorboard:
        opened.append(open_tensorboard(output / TENSORBOARD_NAME, step))
    if config.log.wandb is not None:
        opened.append(open_wandb(config, config.log.wandb, output, step, report))


def open_tensorboard(folder: Path, step: int) -> Board:
    """A new event file in `folder`. Its start tells readers to forget what older files hold of later steps than `step`.

    The package tensorboard writes step by step and without the thread that torch's SummaryWriter has, whose flush waits
    for ever once a write has failed: a step on the screen is in the file, and a full disk is an error here.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Readers take the files of a folder by name; the oldest first.
        file = (folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}").open("xb")
        records = RecordWriter(file)

        def put(event: Event) -> None:
            records.write(event.SerializeToString())

        put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        put(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        file.flush()
    except OSError as error:
        raise TrainError(f"log.tensorboard: {folder} cannot be written ({error}); free it, or leave it out") from error

    def write(number: int, seconds: float, values: Mapping[str, float]) -> None:
        pairs = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        put(Event(wall_time=seconds, step=number, summary=Summary(value=pairs)))
        file.flush()

    return Board("tensorboard", write, lambda well: file.close())


def open_wandb(config: TrainConfig, project: str, output: Path, step: int, report: Say) -> Board:
    """The wandb run of an output folder: a new run for training from step 0, else the run whose id is in wandb.json.

    wandb cannot take a step back: steps that wandb was given before a kill stay, and are not given again.
    """
    import wandb
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    broken = (wandb.Error, HandleAbandonedError, MailboxClosedError, OSError)

    @contextmanager
    def failing() -> Iterator[None]:
        try:
            yield
        except broken as error:
            # Otherwise wandb's hook at the exit of Python fails once more, with a traceback.
            with suppress(*broken):
                wandb.teardown()
            raise OSError(str(error)) from error

    known = _read_wandb(output / WANDB_NAME) if step else {}
    run_id, given = known.get("id", secrets.token_hex(4)), known.get("step", 0)
    settings = wandb.Settings(console="off", silent=True, finish_timeout=_UPLOAD_SECONDS, finish_timeout_raises=True)
    mode: Any = wandb_mode(config.log)
    try:
        run = wandb.init(
            project=project,
            name=config.log.wandb_name or output.resolve().name,
            id=run_id,
            resume="allow",
            mode=mode,
            dir=output,
            config=shown_setting(asdict(config)),
            settings=settings,
        )
        _write_wandb(output / WANDB_NAME, run_id, given)
    except broken as error:
        raise TrainError(
            f"log.wandb: the run cannot be opened ({' '.join(str(error).split())});"
            " `wandb login`, or set log.wandb_mode to offline"
        ) from error
    place = run.url if mode == "online" else f"{run.settings.sync_dir}, for `wandb sync`"
    report(f"wandb: {place}")

    def write(number: int, seconds: float, values: Mapping[str, float]) -> None:
        nonlocal given
        if number <= given:
            return
        with failing():
            run.log({**values, "time": seconds}, step=number)
        given = number
        _write_wandb(output / WANDB_NAME, run_id, given)

    def close(well: bool) -> None:
        with failing():
            run.finish(exit_code=0 if well else 1)
            # Only the end of its process says that all is on disk.
            wandb.teardown(exit_code=0 if well else 1)

    return Board("wandb", write, close)


def _read_wandb(path: Path) -> dict[str, Any]:
    """{id, step}: the wandb run of an output folder and the last step that wandb has; empty where there is no run."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {"id": str(known["id"]), "step": int(known["step"])}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{path} is damaged ({type(error).__name__}: {error}); remove it for a new run") from error


def _write_wandb(path: Path, run_id: str, step: int) -> None:
    write_whole(path, json.dumps({"id": run_id, "step": step}))
