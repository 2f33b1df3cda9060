"""Settings of a run that cannot work are refused when they are read."""

import pytest

from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.train import TrainConfig

NEEDED = {"model.path": "m", "data.shards": "s", "output": "o", "max_steps": 1}


@pytest.mark.parametrize("betas", [[0.9, 1.0], [-0.1, 0.9], [1.5, 0.9]])
def test_averaging_constants_outside_their_range_are_refused(betas: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.betas is \["):
        load_config(TrainConfig, None, values={**NEEDED, "optim.betas": betas})


def test_averaging_constants_may_be_0() -> None:
    assert load_config(TrainConfig, None, values={**NEEDED, "optim.betas": [0.0, 0.0]}).optim.betas == (0.0, 0.0)


def share(shards: str, **amount: float) -> dict[str, str | float]:
    return {"shards": shards, **amount}


def mixture(*shares: dict[str, str | float]) -> TrainConfig:
    return load_config(TrainConfig, None, values={**NEEDED, "data.shards": "", "data.mixture": list(shares)})


@pytest.mark.parametrize("kind", ["weight", "tokens", "epochs"])
def test_a_mixture_measures_its_sets_by_one_kind(kind: str) -> None:
    found = mixture(share("a", **{kind: 2.0}), share("b", **{kind: 1})).data.mixture
    assert [(one.shards, getattr(one, kind)) for one in found] == [("a", 2.0), ("b", 1.0)]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([share("a", weight=1), share("b", tokens=1)], r"measures by \['tokens', 'weight'\]"),
        ([share("a", weight=1, epochs=1)], r"mixture\[0\] has \['weight', 'epochs'\]"),
        ([share("a", weight=1), share("b")], r"mixture\[1\] has no amount"),
        ([share("a", weight=0.0)], r"mixture\[0\] has \['weight'\], expected one of .* above 0"),
    ],
)
def test_a_mixture_that_says_too_much_or_too_little_is_refused(
    shares: list[dict[str, str | float]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        mixture(*shares)


@pytest.mark.parametrize("settings", [{"data.shards": ""}, {"data.mixture": [{"shards": "a", "weight": 1}]}])
def test_a_run_has_one_set_or_a_mixture(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"set one of data\.shards .* and data\.mixture"):
        load_config(TrainConfig, None, values={**NEEDED, **settings})


def test_the_best_model_needs_a_measure_that_is_taken() -> None:
    with pytest.raises(ConfigError, match="eval is not set"):
        load_config(TrainConfig, None, values={**NEEDED, "metric_for_best_model": "eval_loss"})
    with pytest.raises(ConfigError, match="needs metric_for_best_model"):
        load_config(TrainConfig, None, values={**NEEDED, "load_best_model_at_end": True})
    settings = {"metric_for_best_model": "eval_loss", "load_best_model_at_end": True, "eval.shards": "e"}
    assert load_config(TrainConfig, None, values={**NEEDED, **settings}).eval is not None
