"""Numbers of ranks and heads that cannot be shared are refused, with what can be."""

import pytest

from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.parallel import check_sequence_heads, check_sequence_ranks
from lmms.configs.train import TrainConfig

NEEDED = {"model.path": "m", "data.shards": "s", "output": "o", "max_steps": 1}


def test_packs_are_shared_by_no_ranks_unless_it_is_set() -> None:
    assert load_config(TrainConfig, None, values=NEEDED).parallel.sequence == 1
    assert load_config(TrainConfig, None, values={**NEEDED, "parallel.sequence": 4}).parallel.sequence == 4


@pytest.mark.parametrize("value", [0, -2])
def test_fewer_than_one_rank_is_refused(value: int) -> None:
    with pytest.raises(ConfigError, match=rf"parallel\.sequence is {value}, expected at least 1"):
        load_config(TrainConfig, None, values={**NEEDED, "parallel.sequence": value})


@pytest.mark.parametrize(("sequence", "ranks", "start"), [(4, 6, 8), (2, 1, 2), (8, 4, 8)])
def test_ranks_that_do_not_divide_are_refused_with_what_would(sequence: int, ranks: int, start: int) -> None:
    message = rf"parallel\.sequence is {sequence}, but there are {ranks} ranks.*start {start} ranks, or .* one of \[1"
    with pytest.raises(ConfigError, match=message):
        check_sequence_ranks(sequence, ranks)


def test_heads_that_cannot_be_dealt_out_are_refused_with_what_can() -> None:
    with pytest.raises(ConfigError, match=r"sequence is 8, but the model has 12 .* one of \[1, 2, 3, 4, 6, 12\]"):
        check_sequence_heads(8, 12)


@pytest.mark.parametrize(("sequence", "number"), [(1, 1), (2, 4), (4, 4), (3, 12)])
def test_what_divides_is_taken(sequence: int, number: int) -> None:
    check_sequence_ranks(sequence, number)
    check_sequence_heads(sequence, number)
