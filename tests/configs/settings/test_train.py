"""Settings of a run that cannot work are refused when they are read."""

from pathlib import Path

import pytest

from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig

NEEDED = {"model.path": "m", "data.shards": "s", "output": "o", "max_steps": 1}


@pytest.mark.parametrize("betas", [[0.9, 1.0], [-0.1, 0.9], [1.5, 0.9]])
def test_averaging_constants_outside_their_range_are_refused(betas: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.betas\[[01]\] is (1.0|-0.1|1.5), expected at least 0 and below 1"):
        load_config(TrainConfig, None, values={**NEEDED, "optim.betas": betas})


def test_averaging_constants_may_be_0() -> None:
    assert load_config(TrainConfig, None, values={**NEEDED, "optim.betas": [0.0, 0.0]}).optim.betas == (0.0, 0.0)


def share(shards: str, **amount: float) -> dict[str, str | float]:
    return {"shards": shards, **amount}


def mixture(*shares: dict[str, str | float]) -> TrainConfig:
    return load_config(TrainConfig, None, values={**NEEDED, "data.shards": None, "data.mixture": list(shares)})


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
        ([share("a", weight=1), share("", weight=1)], r"mixture\[1\]\.shards is '' \(an empty string\)"),
        ([share("a", weight=0.0)], r"mixture\[0\]\.weight is 0.0, expected above 0"),
    ],
)
def test_a_mixture_that_says_too_much_or_too_little_is_refused(
    shares: list[dict[str, str | float]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        mixture(*shares)


@pytest.mark.parametrize("settings", [{"data.shards": None}, {"data.mixture": [{"shards": "a", "weight": 1}]}])
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_steps": None},
            "the length of the run is set by nothing, expected one of max_steps, max_epochs, max_tokens",
        ),
        ({"max_epochs": 2}, r"set by max_steps \(1\) and max_epochs \(2.0\)"),
        ({"max_steps": None, "max_epochs": -1}, "max_epochs is -1, expected above 0"),
        ({"max_steps": None, "max_tokens": 0}, "max_tokens is 0, expected above 0"),
    ],
)
def test_a_run_has_one_length(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, None, values={**NEEDED, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim.lr": {"vision": 0}}, "optim.lr.vision is 0, expected above 0; to keep a part as it is, freeze it"),
        ({"optim.lr": {"layers.(": 1.0}}, "optim.lr: 'layers.\\(' is no regular expression"),
        ({"train": {"*": "frozen"}}, r"train: '\*' is no regular expression"),
        (
            {"optim.warmup_steps": 3, "optim.warmup_ratio": 0.1},
            "steps is 3 and optim.warmup_ratio 0.1, expected one",
        ),
        ({"optim.betas": [0.9, 1.0]}, r"optim.betas\[1\] is 1.0, expected at least 0 and below 1"),
        ({"optim.warmup_ratio": 1.5}, "optim.warmup_ratio is 1.5, expected 0 to 1"),
        ({"kernels.compile": True, "parallel.sequence": 2}, "kernels.compile is true and parallel.sequence 2"),
        ({"lora.rank": 8}, "lora is set, but nothing is trained with it; set train"),
        ({"train.llm": "lora", "lora.rank": 0}, "lora.rank is 0, expected at least 1"),
        ({"data.shards": "s3://b/s", "stall_s": 100}, "data.retry_s is 120, expected at most 0.9 x stall_s"),
        ({"data.shards": "dbfs:/Volumes/s", "stall_s": 100}, "data.retry_s is 120, expected at most 0.9 x stall_s"),
        ({"eval.shards": "https://b/s", "stall_s": 100}, "data.retry_s is 120, expected at most 0.9 x stall_s"),
        ({"optim.decay_ratio": -0.5}, "optim.decay_ratio is -0.5, expected 0 to 1"),
    ],
)
def test_rates_and_patterns_that_cannot_be_meant_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, None, values={**NEEDED, **settings})


def test_a_rate_alone_is_the_default_and_leaves_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lr: {vision: 1e-6, 'layers\\.0\\.': 1e-7}}\ntrain: {vision: frozen}\n")
    needed = [f"{key}={value}" for key, value in NEEDED.items()]
    assert load_config(TrainConfig, file, needed).optim.lr == {"default": 1e-5, "vision": 1e-6, r"layers\.0\.": 1e-7}
    found = load_config(TrainConfig, file, [*needed, "optim.lr=3e-5", "optim.lr.aligner=2e-6"])
    assert found.optim.lr == {"default": 3e-5, "vision": 1e-6, r"layers\.0\.": 1e-7, "aligner": 2e-6}
    assert found.train == {"default": "full", "vision": "frozen"}
    with pytest.raises(ConfigError, match=r"train\.vision is 'lost' .*expected one of full, lora, frozen"):
        load_config(TrainConfig, file, [*needed, "train.vision=lost"])


def test_a_store_is_waited_for_as_long_as_one_likes_where_there_is_none() -> None:
    assert load_config(TrainConfig, None, values={**NEEDED, "stall_s": 10}).stall_s == 10


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "train={default:frozen,aligner:full}",
            r"train\.default:frozen is null, .*; write 'default: frozen', with a space",
        ),
        ("optim.lr={default:1e-4}", r"optim\.lr\.default:1e-4 is null, .*; write 'default: 1e-4', with a space"),
        ("train={llm}", r"train\.llm is null, but nothing set it before$"),
        ("train.llm=null", r"train\.llm is null, but nothing set it before$"),
    ],
)
def test_a_null_that_takes_nothing_back_is_refused(override: str, said: str) -> None:
    """YAML reads `a:b` as a key without a value: it would leave the whole model trained."""
    with pytest.raises(ConfigError, match=said):
        load_config(TrainConfig, None, [override], NEEDED)


def test_null_takes_back_what_a_parent_set_for_a_part(tmp_path: Path) -> None:
    parent, child = tmp_path / "parent.yaml", tmp_path / "child.yaml"
    parent.write_text("train: {llm: lora, vision: frozen}\noptim: {lr: {default: 2.0e-5, vision: 1.0e-6}}\n")
    child.write_text("extends: parent.yaml\ntrain: {llm: null}\n")
    config = load_config(TrainConfig, child, ["optim.lr.vision=null", "optim.lr.default=null"], NEEDED)
    assert config.train == {"default": "full", "vision": "frozen"}
    assert config.optim.lr == {"default": 1e-5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.global_packs": 2**21}, "data.global_packs is 2097152, expected 1 to 1,048,576"),
        ({"stall_s": 1e300}, r"stall_s is 1e\+300, expected 1 to 10,000,000"),
    ],
)
def test_numbers_that_no_machine_could_hold_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, None, values={**NEEDED, **settings})
