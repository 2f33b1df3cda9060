"""The section `memory`: what it refuses, and where its keys were before."""

import pytest

from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.settings.memory import MemoryConfig
from lmms.configs.settings.train import TrainConfig

NEEDED = ["model.path=m", "data.shards=d", "output=o", "max_steps=1"]


def memory(*overrides: str) -> MemoryConfig:
    return load_config(TrainConfig, None, [*NEEDED, *overrides]).memory


def test_blocks_are_recomputed_in_full_and_nothing_goes_out_by_default() -> None:
    assert memory() == MemoryConfig(recompute="full", recompute_vision=None, offload_activations_gb=0)
    assert memory().offload_bytes == 0
    assert memory("memory.offload_activations_gb=1.5").offload_bytes == 1_500_000_000


@pytest.mark.parametrize("vision", ["none", "elementwise", "full"])
def test_the_tower_does_as_the_rest_unless_it_is_told(vision: str) -> None:
    assert memory(f"memory.recompute={vision}").vision == vision
    assert memory("memory.recompute=elementwise", f"memory.recompute_vision={vision}").vision == vision


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("memory.recompute=selective", r"memory\.recompute is 'selective' .*expected one of none, elementwise, full$"),
        ("memory.recompute_vision=all", r"memory\.recompute_vision is 'all' .*none, elementwise, full or null"),
        ("memory.offload_activations_gb=-1", r"memory\.offload_activations_gb is -1, expected at least 0$"),
        ("memory.offload_activations_gb=all", r"memory\.offload_activations_gb is 'all' .*expected a finite number"),
        ("memory.offload=1", r"unknown key 'memory\.offload'; known: offload_activations_gb, recompute"),
        ("model.recompute=full", r"unknown key 'model\.recompute'; it is 'memory\.recompute' here$"),
    ],
)
def test_wrong_values_are_refused_with_the_key_and_the_choices(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        memory(override)


@pytest.mark.parametrize(
    ("key", "others"), [("recompute", []), ("recompute_vision", ["memory.recompute=full", "kernels.compile=false"])]
)
def test_elementwise_with_offload_is_refused_where_blocks_are_not_compiled(key: str, others: list[str]) -> None:
    both = [f"memory.{key}=elementwise", "memory.offload_activations_gb=2", *others]
    with pytest.raises(
        ConfigError,
        match=rf"^memory\.{key} is elementwise and .*_gb 2, .*set memory\.{key}: full .*kernels\.compile: true",
    ):
        memory(*both)
    assert memory(*both, "kernels.compile=true").offload_bytes == 2 * 10**9
    assert memory(*both, "memory.offload_activations_gb=0").offload_bytes == 0
