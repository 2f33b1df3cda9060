"""Numbers of ranks and heads that cannot be shared are refused, with what can be."""

import pytest

from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.settings.parallel import check_offload, check_ranks, check_sequence_heads
from lmms.configs.settings.train import TrainConfig

NEEDED = {"model.path": "m", "data.shards": "s", "output": "o", "max_steps": 1}


def test_packs_are_shared_by_no_ranks_unless_it_is_set() -> None:
    assert load_config(TrainConfig, None, values=NEEDED).parallel.sequence == 1
    assert load_config(TrainConfig, None, values={**NEEDED, "parallel.sequence": 4}).parallel.sequence == 4


@pytest.mark.parametrize("name", ["sequence", "replicate"])
@pytest.mark.parametrize("value", [0, -2])
def test_fewer_than_one_rank_is_refused(value: int, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"parallel\.{name} is {value}, expected at least 1"):
        load_config(TrainConfig, None, values={**NEEDED, f"parallel.{name}": value})


def test_offload_is_refused_where_the_device_is_the_cpu() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.offload is true, but the device is the CPU.*it is for GPUs"):
        load_config(TrainConfig, None, values={**NEEDED, "parallel.offload": True, "device": "cpu"})
    assert load_config(TrainConfig, None, values={**NEEDED, "parallel.offload": True}).parallel.offload
    check_offload(True, "cuda")


@pytest.mark.parametrize(("sequence", "ranks", "start"), [(4, 6, 8), (8, 4, 8)])
def test_ranks_that_do_not_divide_are_refused_with_what_would(sequence: int, ranks: int, start: int) -> None:
    message = rf"parallel\.sequence is {sequence}, but there are {ranks} ranks.*start {start} ranks, or .* one of \[1"
    with pytest.raises(ConfigError, match=message):
        check_ranks(sequence, 1, ranks)
    with pytest.raises(ConfigError, match=message.replace("sequence", "replicate")):
        check_ranks(1, sequence, ranks)
    with pytest.raises(ConfigError, match=r"but there is 1 rank, not a multiple of it; start 2 ranks"):
        check_ranks(2, 1, 1)


def test_heads_that_cannot_be_dealt_out_are_refused_with_what_can() -> None:
    with pytest.raises(ConfigError, match=r"sequence is 8, but the model has 12 .* one of \[1, 2, 3, 4, 6, 12\]"):
        check_sequence_heads(8, 12)


@pytest.mark.parametrize(("sequence", "number"), [(1, 1), (2, 4), (4, 4), (3, 12)])
def test_what_divides_is_taken(sequence: int, number: int) -> None:
    check_ranks(sequence, sequence, number)
    check_sequence_heads(sequence, number)
