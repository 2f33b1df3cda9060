"""What a run trains, as a table: shown before the first step, and kept as trained.json in its output."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmms.configs.by_part import PARTS, Part
from lmms.configs.files import write_whole
from lmms.configs.settings.train import How
from lmms.train.model.names import is_lora, parameter_name, part_of

TRAINED_NAME = "trained.json"

_HOWS: tuple[How, ...] = ("full", "lora", "frozen")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The parameters of one part that are trained in one way."""

    part: Part
    how: How
    """lora: layers with LoRA and their frozen weights."""
    modules: int
    """Modules that hold parameters directly; a layer with LoRA counts as a single module."""
    parameters: int
    trained: int
    """Parameters that the optimizer updates."""
    rank: int | None
    """Rank of LoRA."""
    lr: tuple[float, ...]
    """Peak learning rates, the lowest first."""
    weight_decay: tuple[float, ...]
    rule: dict[str, int]
    """Update rule, see rules_of -> the number of parameters that it updates."""
    dtype: tuple[str, ...]
    """Types in which the weights are kept, by name."""


def trained_table(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
    """A row for each part of the model and each way of training in that part. optimizer: see make_optimizer."""
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    layers = {parameter_name(name) for name, module in model.named_modules() if hasattr(module, "base_layer")}

    def how(name: str, parameter: nn.Parameter) -> How:
        owner = parameter_name(name).rpartition(".")[0]
        if is_lora(name) or (owner in layers and not parameter.requires_grad):
            return "lora"
        return "full" if parameter.requires_grad else "frozen"

    def kind(item: tuple[str, nn.Parameter]) -> tuple[int, int]:
        name, parameter = item
        return PARTS.index(part_of(model, name)), _HOWS.index(how(name, parameter))

    return [
        _row(PARTS[part], _HOWS[way], list(members), groups)
        for (part, way), members in groupby(sorted(model.named_parameters(), key=kind), kind)
    ]


def table_lines(rows: Sequence[Row]) -> list[str]:
    """The table as lines of equal width; the first line names the columns."""
    head = ("part", "how", "modules", "parameters", "trained", "lr", "decay", "rule", "dtype", "rank")
    body = [
        (
            row.part,
            row.how,
            f"{row.modules:,}",
            f"{row.parameters:,}",
            f"{row.trained:,}",
            _numbers(row.lr),
            _numbers(row.weight_decay),
            _rules(row.rule),
            ", ".join(row.dtype),
            str(row.rank or "-"),
        )
        for row in rows
    ]
    # Without LoRA no row has a rank.
    shown = len(head) if any(row.rank for row in rows) else len(head) - 1
    widths = [max(map(len, column)) for column in zip(head[:shown], *body, strict=False)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=False)) for line in (head, *body)]


def write_table(output: Path, rows: Sequence[Row]) -> None:
    """Write trained.json."""
    write_whole(output / TRAINED_NAME, json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _row(
    part: Part,
    how: How,
    members: Sequence[tuple[str, nn.Parameter]],
    groups: Mapping[nn.Parameter, Mapping[str, Any]],
) -> Row:
    moved = [parameter for _, parameter in members if parameter in groups]
    owners = {parameter_name(name).partition(".lora_")[0] for name, _ in members if is_lora(name)}
    owners |= {parameter_name(name).rpartition(".")[0] for name, _ in members if not is_lora(name)}
    rules = sorted({groups[parameter]["rule"] for parameter in moved})
    return Row(
        part=part,
        how=how,
        modules=len(owners),
        parameters=sum(parameter.numel() for _, parameter in members),
        trained=sum(parameter.numel() for parameter in moved),
        rank=next((parameter.shape[0] for name, parameter in members if ".lora_A." in name), None),
        lr=tuple(sorted({groups[parameter]["peak"] for parameter in moved})),
        weight_decay=tuple(sorted({groups[parameter]["weight_decay"] for parameter in moved})),
        rule={rule: sum(p.numel() for p in moved if groups[p]["rule"] == rule) for rule in rules},
        dtype=tuple(sorted({str(parameter.dtype).removeprefix("torch.") for _, parameter in members})),
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "-"


def _rules(moved: Mapping[str, int]) -> str:
    if len(moved) < 2:
        return "".join(moved) or "-"
    return ", ".join(f"{rule} {number:,}" for rule, number in moved.items())
