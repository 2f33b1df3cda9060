"""A window of steps under torch's profiler. Outside of the window no profiler exists and nothing is recorded.

    output/profile/steps-10-12-rank-0/   trace.json.gz    for ui.perfetto.dev or chrome://tracing
                                         costs.txt        kernels, operators and ranges by their time
                                         cpu.stacks.txt   profile.stacks: microseconds by stack, for speedscope.app
                                         gpu.stacks.txt   the same, of kernels by the stack that started them
                                         memory.pickle    profile.memory: for pytorch.org/memory_viz

The folder gets its name when all files are written. If a file cannot be written, an alarm says so and the training goes
on.
"""

import gc
import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule
from torch.utils.hooks import RemovableHandle

from lmms.configs.errors import ConfigError, TrainError
from lmms.configs.files import beside, remove
from lmms.configs.settings.profile import ProfileConfig
from lmms.train.model.forward import TrainModel
from lmms.train.model.names import language_model, towers
from lmms.train.parallel.world import World
from lmms.train.watch.marks import Marks
from lmms.train.watch.profile_costs import Event, costs_of, costs_table, folded_stacks, top_lines
from lmms.train.watch.watch import Watch

PROFILE_NAME = "profile"

_MEMORY_EVENTS = 100_000
"""The newest allocations and frees that are kept, several KB each by torch's documentation."""


def check_profile(config: ProfileConfig, device: str, ranks: int, step: int, steps: int) -> None:
    """ConfigError for what a run of so many steps on this kind of device, going on after `step`, cannot profile."""
    for name, wanted in (("memory", config.memory), ("oom_stacks", config.oom_stacks)):
        if wanted and device != "cuda":
            raise ConfigError(
                f"profile.{name} is true, but the device is {device}, expected cuda: it records GPUs alone"
            )
    if config.start is None:
        return
    if max(config.ranks) >= ranks:
        raise ConfigError(f"profile.ranks is {list(config.ranks)}, expected ranks from 0 to {ranks - 1}")
    if step == 0 and not window_of(config, step, steps):
        raise ConfigError(
            f"profile.start is {config.start} and profile.steps {config.steps}, but the run ends with step {steps}; set"
            " them lower, or leave them out"
        )


def window_of(config: ProfileConfig, step: int, steps: int) -> range:
    """The steps that a process profiles which goes on after `step` of `steps`; none where the run ends before."""
    if config.start is None or step + config.start + config.steps - 1 > steps:
        return range(0)
    return range(step + config.start, step + config.start + config.steps)


def window_remarks(config: ProfileConfig, window: range) -> list[str]:
    """What a person should know of the window before it comes."""
    if config.start is None:
        return []
    if not window:
        return ["profile: nothing is profiled, since the run ends before the window"]
    ranks = ", ".join(map(str, config.ranks))
    return [f"profile: steps {window[0]} to {window[-1]} of rank {ranks} into {PROFILE_NAME}/ of the output"]


class Profile:
    """The window of one rank, and the marks of its steps, which are ranges of the trace."""

    def __init__(
        self,
        config: ProfileConfig,
        output: Path,
        world: World,
        model: TrainModel,
        window: range,
        watch: Watch,
    ) -> None:
        self.marks = Marks()
        self.slowed = range(window[0] - 1, window[-1] + 1) if window else window
        """The steps of the window and the step of the warm-up, on whatever ranks they are profiled."""
        self._config, self._world, self._model, self._watch = config, world, model, watch
        self._window = window if world.rank in config.ranks else range(0)
        self._output = output
        self._profiler: profile | None = None
        self._ended = False
        self._hooks: list[RemovableHandle] = []

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A context around all of a step."""
        if self._window and number == self._window[0] - 1:
            self._start()
        if self._profiler is None:
            yield
            return
        with record_function(f"step {number}"):
            try:
                yield
            finally:
                self.marks("")
        self._profiler.step()
        if number == self._window[-1]:
            self._ended = True
            self._write(self._profiler)
            self.close()

    def close(self) -> None:
        """Stop; nothing is kept of a window that is not at its end."""
        if self._profiler is None:
            return
        if not self._ended:
            self._watch.say("profile: its window was left before its end, nothing of it is kept")
        self._profiler.stop()
        self._profiler = None
        # A profiler refers to itself: all that it recorded would stay until Python collects such objects.
        gc.collect()
        self.marks.ranges = False
        while self._hooks:
            self._hooks.pop().remove()
        if self._config.memory and not self._config.oom_stacks:
            torch.cuda.memory._record_memory_history(None)

    def _start(self) -> None:
        cuda = self._world.device.type == "cuda"
        # The profiler writes about itself on stderr, across the live view; above 5 it does not.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        self._profiler = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])],
            schedule=schedule(wait=0, warmup=1, active=len(self._window), repeat=1),
            record_shapes=True,
            with_stack=self._config.stacks,
        )
        if self._config.memory and not self._config.oom_stacks:
            record_allocations()
        self._hooks = _mark_parts(self._model, self.marks)
        self.marks.ranges = True
        self._profiler.start()

    def _write(self, profiler: profile) -> None:
        """Write all files of the window, then give the folder its name."""
        profiler.stop()
        first, last = self._window[0], self._window[-1]
        self._watch.beat(f"step {last}, its profile")
        folder = self._output / PROFILE_NAME / f"steps-{first}-{last}-rank-{self._world.rank}"
        try:
            with beside(folder) as part:
                part.mkdir(parents=True)
                events = _write_trace(profiler, part)
                costs = costs_of(events)
                (part / "costs.txt").write_text(costs_table(costs, len(self._window)), encoding="utf-8")
                for device, text in folded_stacks(events).items() if self._config.stacks else ():
                    (part / f"{device}.stacks.txt").write_text(text, encoding="utf-8")
                if self._config.memory:
                    torch.cuda.memory._dump_snapshot(str(part / "memory.pickle"))  # type: ignore[no-untyped-call]
                remove(folder)
        except (OSError, TrainError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            # A report is read on rank 0 only.
            tell = self._watch.say if self._world.is_main else partial(print, flush=True)
            tell(f"ALARM: profile: {folder} cannot be written ({said}); nothing of it is kept, the training goes on")
            return
        self._watch.say(f"profile: {folder}; of the time of steps {first} to {last}:")
        for line in top_lines(costs, len(self._window)):
            self._watch.say(line)


@contextmanager
def profiling(
    config: ProfileConfig, output: Path, world: World, model: TrainModel, window: range, watch: Watch
) -> Iterator[Profile]:
    """The profile of a run; all recording ends with the block."""
    profile = Profile(config, output, world, model, window, watch)
    if config.oom_stacks:
        record_allocations()
    try:
        yield profile
    finally:
        profile.close()


def record_allocations() -> None:
    """From now on, keep which Python code allocates what on the GPU."""
    torch.cuda.memory._record_memory_history(context="alloc", stacks="python", max_entries=_MEMORY_EVENTS)


def _mark_parts(model: TrainModel, marks: Marks) -> list[RemovableHandle]:
    """Have each forward pass mark its parts: the towers', merge, llm, loss."""
    language = language_model(model.hf)
    hooks = [
        language.register_forward_pre_hook(lambda *_: marks.inside("llm")),
        language.register_forward_hook(lambda *_: marks.inside("loss")),
    ]
    for part, tower in towers(model.hf):
        hooks.append(tower.register_forward_pre_hook(lambda *_, part=part: marks.inside(part)))
        hooks.append(tower.register_forward_hook(lambda *_: marks.inside("merge")))
    return hooks


def _write_trace(profiler: profile, folder: Path) -> list[Event]:
    """Write trace.json.gz, and return its events that take time.

    On a full disk the profiler writes a part, under this or another name, and says nothing: here this is a TrainError.
    """
    whole = folder / "trace.json"
    profiler.export_chrome_trace(str(whole))
    text = whole.read_bytes() if whole.exists() else b""
    try:
        events = json.loads(text.decode(errors="replace"), strict=False)["traceEvents"]
    except ValueError as error:
        raise TrainError(f"{whole.name} was not written to its end: {error}; is the disk full?") from error
    (folder / f"{whole.name}.gz").write_bytes(gzip.compress(text, compresslevel=5))
    whole.unlink()
    return [event for event in events if event.get("ph") == "X"]
