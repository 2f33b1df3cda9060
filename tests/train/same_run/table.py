"""Small runs, and other ways to carry each of them out: on more ranks, in other layouts, from another checkpoint."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import patch

from torch.distributed.fsdp import fully_shard

from lmms.configs.settings.optim import OptimName
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import checkpoint_name
from tests.kit.runs import run_config, train_as_rank, write_run

STEPS = 3
OPTIMIZERS: tuple[OptimName, ...] = get_args(OptimName)
ONE = "one"
"""The run of a case as it stands, on one rank."""


@dataclass(frozen=True)
class Case:
    """A run of STEPS steps, saved after the second and the last."""

    family: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tied: bool = False
    packs: int = 11
    wide: bool = False
    """Large enough for averages of gradients in few bits."""


_EVALUATED = {"eval.every_steps": 2}
_VISION_ALONE = {"train": {"llm": "frozen", "aligner": "frozen"}, "memory.recompute": "none"}
_LORA_IN_PART = {"lora.targets": ["q_proj", "down_proj"], "lora.modules_to_save": ["norm"]}
_EPOCHS = {"data.global_packs": 4, "data.micro_packs": 4, "max_steps": 9, "save_steps": 1}
"""Of 11 packs: epochs end within steps 3, 6 and 9, and after none."""
_MUON_IN_BF16 = {
    "model.precision": "bf16",
    "optim.name": "muon",
    "optim.schedule": "constant",
    "data.global_packs": 2,
    "max_steps": 5,
    "save_steps": 1,
}

CASES: dict[str, Case] = {
    "text": Case("qwen3", tied=True),
    "images": Case("qwen3_vl", _EVALUATED),
    "windows": Case("qwen2_5_vl", _EVALUATED),
    "windows, tied": Case("qwen2_5_vl", tied=True),
    "two packs a pass": Case("qwen3_vl", {"data.micro_packs": 2}),
    "vision frozen": Case("qwen2_vl", {"train": {"vision": "frozen"}}),
    "vision alone": Case("qwen3_vl", _VISION_ALONE),
    "lora": Case("qwen3_vl", {"train": {"default": "lora"}, "lora.rank": 3, "lora.bias": "all"}),
    "lora, full, frozen": Case(
        "qwen2_5_vl", {"train": {"llm": "lora", "vision": "frozen"}, **_LORA_IN_PART}, tied=True
    ),
    **{f"{packs} packs": Case("qwen3_vl", {"data.global_packs": packs}) for packs in (1, 3, 5)},
    **{name: Case("qwen3_vl", {"optim.name": name}, wide=True) for name in OPTIMIZERS},
    "epochs": Case("qwen3_vl", _EPOCHS),
    "muon in bf16": Case("qwen3", _MUON_IN_BF16, packs=4),
    "all media": Case("qwen2_5_omni_thinker", _EVALUATED),
    "sounds": Case("qwen2_audio", {"train": {"audio": "lora", "llm": "frozen"}, "lora.rank": 2}),
}
Close = Literal["sums", "bits", "bf16"]


@dataclass(frozen=True)
class Row:
    """Another way to carry out the run of a case, which gives what `like` gave."""

    case: str
    name: str
    ranks: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    begin: tuple[str, int] | None = None
    """A run of the same case, and after which of its steps this one goes on."""
    like: str = ONE
    close: Close = "sums"
    """sums: to the rounding of sums taken in another order. bits: the same. bf16: as half precision is to single."""

    @property
    def id(self) -> str:
        return f"{self.case}: {self.name}"


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "two": (2, {}),
    "a copy a rank": (2, {"parallel.replicate": 2}),
    "two, in main memory, kept gathered": (2, {"parallel.reshard": False, "parallel.offload": True}),
    "four": (4, {}),
    "four, shared packs": (4, {"parallel.sequence": 4}),
    "four, packs shared by two": (4, {"parallel.sequence": 2}),
    "two copies": (4, {"parallel.replicate": 2}),
    "kept gathered": (4, {"parallel.reshard": False}),
    "four copies, kept gathered": (4, {"parallel.replicate": 4, "parallel.reshard": False}),
    "two copies, shared packs": (4, {"parallel.replicate": 2, "parallel.sequence": 2}),
    "two copies, in main memory": (4, {"parallel.replicate": 2, "parallel.offload": True}),
}
SHARDED = tuple(name for name in LAYOUTS if {"parallel.replicate", "parallel.reshard"} & LAYOUTS[name][1].keys())
"""Layouts in which weights are not cut as FSDP2 cuts them by itself."""


def layout(case: str, name: str) -> Row:
    """A case in a layout of LAYOUTS."""
    return Row(case, name, *LAYOUTS[name])


def passes(loaders: int, packs: int) -> dict[str, Any]:
    """So many loader processes, and packs a pass."""
    return {"data.workers": loaders, "data.micro_packs": packs}


HALF: dict[str, Any] = {"model.precision": "bf16", "max_steps": 1}
SHARED = "four, packs shared by two"

ROWS: tuple[Row, ...] = (
    *(
        layout(case, "two")
        for case in CASES
        if case not in ("windows", "two packs a pass", "5 packs", "epochs", "muon in bf16")
    ),
    layout("5 packs", "four"),
    *(layout(case, "four, shared packs") for case in ("text", "windows", "two packs a pass")),
    *(layout(case, "four, packs shared by two") for case in ("text", "windows", "two packs a pass", "lora")),
    layout("vision alone", "four, packs shared by two"),
    layout("all media", "four, packs shared by two"),
    Row("all media", "one from two", 1, begin=("two", 2), like="two"),
    Row("all media", "one rank from 2", 1, begin=(ONE, 2), close="bits"),
    Row("vision alone", "shared packs from a loader", 2, {"parallel.sequence": 2, "data.workers": 1}),
    *(layout("lora", name) for name in ("four", "two copies")),
    *(layout("images", name) for name in SHARDED),
    *(layout("text", name) for name in SHARDED if "shared packs" in name or "kept gathered" in name),
    *(layout("vision alone", name) for name in SHARDED if "shared packs" not in name),
    *(layout(name, "two copies") for name in OPTIMIZERS),
    *(Row(name, "from main memory", 2, {"parallel.offload": True}, like="two", close="bits") for name in OPTIMIZERS),
    # Recomputed, in other passes, in half precision.
    *(Row(case, "kept", 1, {"memory.recompute": "none"}, close="bits") for case in ("text", "images", "lora")),
    *(Row(case, "one pass", 1, {"data.micro_packs": 4}) for case in ("text", "images", "lora", "lora, full, frozen")),
    *(Row(case, "half", 1, HALF, close="bf16") for case in ("text", "images", "windows, tied", "lora, full, frozen")),
    Row("two packs a pass", "half, shared packs", 4, {**HALF, "parallel.sequence": 4}, close="bf16"),
    # From ranks to other ranks.
    *(Row(case, "two from one", 2, begin=(ONE, 2)) for case in ("images", "lora", *OPTIMIZERS)),
    *(Row(case, "one from two", 1, begin=("two", 2), like="two") for case in ("images", "lora")),
    *(
        Row(case, "two copies from one", 4, LAYOUTS["two copies, in main memory"][1], begin=(ONE, 2))
        for case in ("text", "images", "vision alone")
    ),
    *(Row("images", f"one from {name}", 1, begin=(name, 2), like=name) for name in SHARDED),
    *(Row(case, "one from shared packs", 1, begin=(SHARED, 2), like=SHARED) for case in ("text", "two packs a pass")),
    # Loaders and packs a pass, over epochs; from any step, bit for bit on the same ranks.
    *(
        Row("epochs", f"{ranks} ranks, {loaders} loaders, {packs} a pass", ranks, passes(loaders, packs))
        for ranks, loaders, packs in ((1, 1, 1), (1, 3, 3), (2, 1, 2), (2, 3, 1), (4, 0, 1), (4, 0, 2))
    ),
    *(Row("epochs", f"2 ranks from {step}", 2, passes(0, 1), begin=(ONE, step)) for step in (1, 5)),
    *(Row("epochs", f"4 ranks from {step}", 4, passes(0, 1), begin=(ONE, step)) for step in (3, 6)),
    *(Row("epochs", f"one rank from {step}", 1, begin=(ONE, step), close="bits") for step in (1, 3, 8)),
    Row("epochs", "four from two from one", 4, passes(0, 1), begin=("2 ranks from 1", 4)),
    Row("epochs", "and back on one", 1, begin=("four from two from one", 7)),
    Row("muon in bf16", "two from one", 2, begin=(ONE, 2)),
    Row("muon in bf16", "and back on one", 1, begin=("two from one", 3)),
)


def write_case(case: Case, folder: Path) -> dict[str, Any]:
    """The settings of a case, whose model and shards are written into `folder`."""
    settings = write_run(folder, case.family, packs=case.packs, tied=case.tied)
    settings |= {"max_steps": STEPS, "save_steps": 2, **case.settings}
    if case.wide:
        path = folder / "model" / "config.json"
        config = json.loads(path.read_text())
        config["text_config"] |= {"hidden_size": 64, "intermediate_size": 300}
        config["vision_config"] |= {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 160}
        path.write_text(json.dumps(config))
    if "eval.every_steps" in settings:
        settings["eval.shards"] = settings["data.shards"]
    return settings


def row_config(row: Row, settings: Mapping[str, Any], folder: Path) -> TrainConfig:
    """The settings of a row, whose output has its name, in `folder`."""
    begin = {"resume": str(folder / row.begin[0] / checkpoint_name(row.begin[1]))} if row.begin else {}
    with patch("lmms.configs.settings.train.check_offload"):
        return run_config({**settings, **row.changes, **begin}, output=str(folder / row.name))


UNITS = "units.json"
"""In an output: of each call of fully_shard on rank 0, the sizes of its mesh, the name of its offload policy, and its
reshard_after_forward."""


def train_rows(rank: int, ranks: int, configs: Sequence[TrainConfig], ports: Sequence[int]) -> None:
    """Train these as one of the ranks, with weights in main memory on a CPU too: FSDP2 walks the same way, on which
    nothing moves. What FSDP2 was called with is written down."""
    for config, port in zip(configs, ports, strict=True):
        with ExitStack() as patches:
            patches.enter_context(patch("lmms.train.parallel.world.check_offload"))
            sharded = patches.enter_context(patch("lmms.train.parallel.sharding.fully_shard", wraps=fully_shard))
            train_as_rank(rank, ranks, [config], [port])
        if rank == 0:
            asked = [call.kwargs for call in sharded.call_args_list]
            units = [(a["mesh"].shape, type(a["offload_policy"]).__name__, a["reshard_after_forward"]) for a in asked]
            Path(config.output, UNITS).write_text(json.dumps(units))
