"""The table of what is trained says what is so, counts every parameter once, and is kept."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from lmms.configs.settings.lora import LoraConfig
from lmms.configs.settings.optim import OptimConfig
from lmms.train.model.build import keep_in
from lmms.train.optim.groups import make_optimizer
from lmms.train.optim.table import TRAINED_NAME, Row, table_lines, trained_table, write_table
from tests.kit.model.models import FAMILIES, part_of, tiny_model


def test_each_part_has_a_row_for_each_way_it_is_trained() -> None:
    lora = LoraConfig(rank=4, targets=("q_proj", "linear_fc1"), bias="lora_only")
    model = tiny_model("qwen3_vl", train={"default": "frozen", "llm": "lora", "aligner": "lora"}, lora=lora)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    keep_in(model, torch.bfloat16, trained)
    config = OptimConfig(lr={"default": 1.0, "aligner": 2.0, "lora_B": 3.0}, weight_decay=0.1)
    rows = {(row.part, row.how): row for row in trained_table(model, make_optimizer(model, config))}
    assert list(rows) == [
        *(("llm", "lora"), ("llm", "frozen"), ("vision", "frozen")),
        *(("aligner", "full"), ("aligner", "lora"), ("aligner", "frozen")),
    ]
    assert rows["llm", "lora"] == Row(
        part="llm",
        how="lora",
        modules=3,
        parameters=3 * (64 * 32 + 4 * (32 + 64)),
        trained=3 * 4 * (32 + 64),
        rank=4,
        lr=(1.0, 3.0),
        weight_decay=(0.1,),
        rule={"adamw": 3 * 4 * (32 + 64)},
        dtype=("bfloat16", "float32"),
    )
    # The biases of three mergers' first layers, each as wide as four patches of 16.
    assert rows["aligner", "full"].trained == rows["aligner", "full"].parameters == 3 * 64
    assert (rows["aligner", "full"].lr, rows["aligner", "full"].weight_decay) == ((2.0,), (0.0,))
    assert (rows["vision", "frozen"].trained, rows["vision", "frozen"].dtype) == (0, ("bfloat16",))


def test_every_parameter_is_in_one_row(tmp_path: Path) -> None:
    for family in FAMILIES:
        model = tiny_model(family, train={"default": "full", "llm": "lora"})
        rows = trained_table(model, make_optimizer(model, OptimConfig()))
        for part in {row.part for row in rows}:
            own = [parameter for name, parameter in model.named_parameters() if part_of(family, name) == part]
            assert sum(row.parameters for row in rows if row.part == part) == sum(p.numel() for p in own)
            moved = sum(parameter.numel() for parameter in own if parameter.requires_grad)
            assert sum(row.trained for row in rows if row.part == part) == moved
    write_table(tmp_path, rows)
    assert [
        Row(**{**row, **{k: tuple(v) for k, v in row.items() if isinstance(v, list)}})
        for row in json.loads((tmp_path / TRAINED_NAME).read_text())
    ] == rows
    lines = table_lines(rows)
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == [
        "part",
        "how",
        "modules",
        "parameters",
        "trained",
        "lr",
        "decay",
        "rule",
        "dtype",
        "rank",
    ]
    assert len(lines) == 1 + len(rows)


def test_the_table_of_a_large_model_has_no_ranks_without_lora_and_fits_a_terminal() -> None:
    row = Row(
        part="aligner",
        how="full",
        modules=253,
        parameters=3_085_938_688,
        trained=3_085_938_688,
        rank=None,
        lr=(1e-5,),
        weight_decay=(0.0, 0.1),
        rule={"adamw": 3_085_938_688},
        dtype=("float32",),
    )
    lines = table_lines([row, replace(row, how="frozen", trained=0, lr=(), weight_decay=(), rule={})])
    assert lines[0].split()[-1] == "dtype"
    assert lines[1].split()[-1] == "float32"
    assert max(map(len, lines)) <= 88
    assert table_lines([replace(row, rank=8)])[1].split()[-1] == "8"
