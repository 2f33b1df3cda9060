"""A dry run finds what the run would find, and every change that it proposes does what it says."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

import lmms.train.optim.rules
from lmms.configs.errors import ConfigError, LmmsError, ModelError, TrainError
from lmms.configs.settings.parallel import ParallelConfig
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.data.balance import packs_of_steps, straggler_loss
from lmms.train.data.phases import order_of
from lmms.train.plan.cards import MEMORY, Card, cards_to_show, find_card
from lmms.train.plan.dry_run import dry_run
from lmms.train.plan.dry_run_result import DryRun
from lmms.train.plan.memory import ALLOWANCE_BYTES, COMPONENTS
from lmms.train.plan.open import open_run
from lmms.train.plan.trace import units
from lmms.train.run import train
from lmms.train.watch.metrics import METRICS_NAME
from tests.kit.runs import run_config, silent, write_run

BIG = [Card(name="big", memory=10**12, peak_flops=1e15)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of a tiny Qwen3-VL that keeps all activations, two packs a pass."""
    settings = write_run(tmp_path_factory.mktemp("run"), "qwen3_vl")
    return settings | {"memory.recompute": "none", "data.micro_packs": 2, "max_steps": 5}


def fits_all_but(total: int) -> list[Card]:
    """A card that is one byte too small."""
    return [Card(name="small", memory=total - 1, peak_flops=None)]


def test_nothing_is_proposed_where_it_fits(settings: dict[str, Any]) -> None:
    found = dry_run(run_config(settings), 1, BIG)
    assert found.proposals == []
    assert found.total == sum(found.memory[0].values()) <= BIG[0].memory
    assert found.memory[0].keys() == COMPONENTS.keys()
    assert found.memory[0][found.largest] == max(found.memory[0].values())


def test_each_change_that_is_proposed_needs_what_it_says(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny model has no matrix that 8 bits are for.
    monkeypatch.setattr(lmms.train.optim.rules, "SMALL", 600)
    config = run_config(settings)
    total = dry_run(config, 1, BIG).total
    found = dry_run(config, 1, fits_all_but(total))
    totals = {proposal.change: proposal.total for proposal in found.proposals}
    memory, optim = config.memory, config.optim
    changed: dict[str, TrainConfig] = {
        "data.micro_packs: 1": replace(config, data=replace(config.data, micro_packs=1)),
        "memory.recompute: elementwise": replace(config, memory=replace(memory, recompute="elementwise")),
        "memory.recompute_vision: full": replace(config, memory=replace(memory, recompute_vision="full")),
        "memory.recompute: full": replace(config, memory=replace(memory, recompute="full")),
        "train.vision: frozen": replace(config, train={"default": "full", "vision": "frozen"}),
        "optim.name: adamw-8bit": replace(config, optim=replace(optim, name="adamw-8bit")),
    }
    assert list(totals) == list(changed)
    assert totals == {change: dry_run(config, 1, BIG).total for change, config in changed.items()}
    assert max(totals.values()) < total


def test_more_ranks_are_proposed_until_every_card_has_enough(settings: dict[str, Any]) -> None:
    config = run_config(settings, memory__recompute="full", data__micro_packs=1)
    on_four, on_eight = (dry_run(config, ranks, BIG).total for ranks in (4, 8))
    found = dry_run(config, 1, [Card(name="small", memory=(on_four + on_eight) // 2, peak_flops=None)])
    by_ranks = [(p.change, p.total) for p in found.proposals if "ranks" in p.change]
    assert by_ranks[-2:] == [("4 ranks", on_four), ("8 ranks", on_eight)]


def test_states_are_shared_out_over_ranks(settings: dict[str, Any]) -> None:
    alone, shared = (dry_run(run_config(settings), ranks, BIG) for ranks in (1, 4))
    assert len(shared.memory) == 4
    for name in ("weights", "optimizer"):
        assert sum(rank[name] for rank in shared.memory) == pytest.approx(alone.memory[0][name], rel=0.05)
    assert shared.passes == 1 < alone.passes == 2


def test_length_operations_and_waiting_are_those_of_the_order(settings: dict[str, Any]) -> None:
    config = run_config(settings)
    found = dry_run(config, 2, BIG)
    opened = open_run(config, lambda coming: None)
    order = order_of(opened.sets, opened.phase)
    assert found.length.steps == 5
    assert dry_run(replace(config, max_steps=None, max_epochs=2.0), 2, BIG).length.steps == 6
    assert found.length.steps_an_epoch == 11 / 4
    assert found.length.tokens_an_epoch == pytest.approx(opened.sets.tokens.sum())
    assert found.length.flops_an_epoch == pytest.approx(order.costs.sum())
    assert found.length.flops_a_step == pytest.approx(order.costs.mean() * 4)
    assert found.waiting == straggler_loss(order.costs[None], packs_of_steps(order, 0, 64), 2, 2)
    fastest, slowest = found.hours(BIG[0]) or (0.0, 0.0)
    assert slowest * 3600 == pytest.approx(5 * found.length.flops_a_step / (2 * 1e15 * 0.3))
    assert fastest == pytest.approx(slowest * 0.3 / 0.5)


def test_ranks_that_share_their_packs_count_once(settings: dict[str, Any]) -> None:
    alone = dry_run(run_config(settings), 2, BIG)
    shared = dry_run(run_config(settings, parallel__sequence=2), 4, BIG)
    assert (shared.passes, shared.waiting) == (alone.passes, alone.waiting)
    assert any("parallel.sequence 2" in line for line in shared.remarks)
    with pytest.raises(ConfigError, match=r"parallel\.sequence is 2, but there are 3 ranks"):
        dry_run(run_config(settings, parallel__sequence=2), 3, BIG)


def test_copies_of_the_weights_and_weights_kept_gathered_need_more_and_the_way_back_is_proposed(
    tmp_path: Path,
) -> None:
    # Packs without videos: in so small a model those of a video would be the peak, whatever is kept of the weights.
    config = run_config(
        write_run(tmp_path, "qwen3_vl", packs=3), data__micro_packs=1, memory__recompute="full", device="auto"
    )
    plain, copies, kept, offloaded = (
        dry_run(replace(config, parallel=ParallelConfig(**changed)), 4, BIG)
        for changed in ({}, {"replicate": 2}, {"reshard": False}, {"offload": True})
    )
    assert sum(rank["weights"] for rank in copies.memory) == 2 * sum(rank["weights"] for rank in plain.memory)
    assert copies.memory[:2] == copies.memory[2:]
    assert kept.memory[0]["gathered"] > plain.memory[0]["gathered"] == copies.memory[0]["gathered"]
    assert kept.memory[0]["weights"] == plain.memory[0]["weights"]
    assert {offloaded.memory[0][name] for name in ("weights", "optimizer")} == {0}
    # Those of one unit, on their way to main memory.
    assert 0 < offloaded.memory[0]["gradients"] < plain.memory[0]["gradients"]
    held = sum(plain.memory[0][name] for name in ("weights", "optimizer")) + plain.memory[0]["weights"]
    assert any(f"main memory: {held / 1e9:.2f} GB a rank" in line for line in offloaded.remarks)
    for found, changed, name in (
        (copies, ParallelConfig(replicate=2), "parallel.replicate: 1"),
        (kept, ParallelConfig(reshard=False), "parallel.reshard: true"),
    ):
        small = [Card(name="small", memory=found.total - 1, peak_flops=None)]
        proposed = {p.change: p.total for p in dry_run(replace(config, parallel=changed), 4, small).proposals}
        assert proposed[name] == plain.total
    # With offload one rank alone gathers as several do, and from nobody: nothing is on its way.
    one = dry_run(replace(config, parallel=ParallelConfig(offload=True)), 1, BIG)
    assert plain.memory[0]["gathered"] == offloaded.memory[0]["gathered"] > one.memory[0]["gathered"] > 0
    largest = max(sum(p.numel() for p in unit) for unit in units(open_run(config, lambda coming: None).model)[:-1])
    assert plain.memory[0]["gathered"] - one.memory[0]["gathered"] == 2 * largest
    with pytest.raises(ConfigError, match=r"parallel\.replicate is 2, but there are 3 ranks"):
        dry_run(replace(config, parallel=ParallelConfig(replicate=2)), 3, BIG)


def test_the_heaviest_packs_are_looked_at(settings: dict[str, Any]) -> None:
    found = dry_run(run_config(settings, data__micro_packs=1), 1, BIG)
    sets = open_run(run_config(settings), lambda coming: None).sets
    assert found.heaviest.tokens == sets.tokens.max()
    assert found.heaviest.target_tokens == sets.target_tokens.max()
    assert found.heaviest.patches == sets.sidecars[0].patches.max() > 0


def test_a_pass_of_more_packs_than_there_are_holds_some_twice(settings: dict[str, Any]) -> None:
    found = dry_run(run_config(settings, data__micro_packs=22, data__global_packs=22), 1, BIG)
    assert found.heaviest.tokens == 2 * open_run(run_config(settings), lambda coming: None).sets.tokens.sum()


def test_compiled_passes_are_looked_at_as_they_are_padded(settings: dict[str, Any]) -> None:
    found = dry_run(run_config(settings, kernels__compile=True), 1, fits_all_but(1))
    assert found.heaviest.tokens == 2 * 512
    assert found.total > dry_run(run_config(settings), 1, BIG).total
    assert any("of compiled blocks the activations are at most these" in remark for remark in found.remarks)
    # Of one pack a pass too, which is another shape.
    fewer = next(proposal for proposal in found.proposals if proposal.change == "data.micro_packs: 1")
    assert fewer.total == dry_run(run_config(settings, kernels__compile=True, data__micro_packs=1), 1, BIG).total


def test_of_a_mixture_operations_are_those_of_its_shares(settings: dict[str, Any], tmp_path: Path) -> None:
    other = write_run(tmp_path, "qwen3_vl", packs=2)["data.shards"]
    mixture = [{"shards": settings["data.shards"], "weight": 1.0}, {"shards": other, "weight": 3.0}]
    config = run_config(settings, data__shards=None, data__mixture=mixture)
    opened = open_run(config, lambda coming: None)
    order = order_of(opened.sets, opened.phase)
    first, second = order.costs[:11].mean(), order.costs[11:].mean()
    tokens = [float(sidecar.tokens.mean()) for sidecar in opened.sets.sidecars]
    # Shares are of tokens: turns are in proportion to weight / mean tokens of a pack.
    turns = [1 / tokens[0], 3 / tokens[1]]
    expected = (turns[0] * first + turns[1] * second) / sum(turns) * 4
    assert dry_run(config, 1, BIG).length.flops_a_step == pytest.approx(expected, rel=1e-6)


def test_lora_needs_no_states_for_what_is_frozen(settings: dict[str, Any]) -> None:
    config = run_config(settings, train={"default": "lora"}, lora__rank=2)
    full, lora = dry_run(run_config(settings), 1, BIG), dry_run(config, 1, BIG)
    trained = sum(lora.trained.values())
    frozen = sum(lora.parameters.values()) - trained
    assert frozen == sum(full.parameters.values()) > 5 * trained
    (memory,) = lora.memory
    assert memory["weights"] == 2 * frozen + 4 * trained
    # And the number of steps of each of them.
    assert 8 * trained < memory["optimizer"] < 8 * trained + 4 * 2 * 100
    assert not any(
        "train.vision" in proposal.change for proposal in dry_run(config, 1, fits_all_but(lora.total)).proposals
    )


def test_weights_that_the_run_could_not_start_with_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no checkpoint"):
        dry_run(run_config(settings, model__init_from=str(tmp_path)), 1, BIG)


def test_nothing_is_written(settings: dict[str, Any], tmp_path: Path) -> None:
    dry_run(run_config(settings, output=str(tmp_path / "out")), 1, BIG)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"data.shards": "/nowhere"},
        {"model.path": "/nowhere"},
        {"train.default": "frozen"},
        {"train.no_such_name": "frozen"},
        {"optim.lr.no_such_name": 1e-3},
        {"resume": "/nowhere"},
        {"profile.start": 4},
        {"profile.start": 2, "profile.memory": True},
        {"memory.offload_activations_gb": 2},
    ],
    ids=str,
)
def test_what_a_run_would_raise_is_raised(settings: dict[str, Any], tmp_path: Path, change: dict[str, Any]) -> None:
    config = run_config({**settings, **change}, output=str(tmp_path / "out"))
    with pytest.raises(LmmsError) as expected:
        train(config, silent)
    with pytest.raises(type(expected.value)) as found:
        dry_run(config, 1, BIG)
    assert str(found.value) == str(expected.value)


def test_an_output_that_no_run_could_make_is_an_error(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TrainError, match=f"output {output} cannot be opened as a folder: .*/file is not a folder"):
            dry_run(run_config(settings, output=str(output)), 1, BIG)


def test_a_change_that_saves_next_to_nothing_is_not_proposed(settings: dict[str, Any]) -> None:
    plain = dry_run(run_config(settings, device="auto"), 1, fits_all_but(1))
    small = replace(run_config(settings, device="auto"), data=replace(run_config(settings).data, micro_packs=1))
    for found in (plain, dry_run(small, 1, fits_all_but(1))):
        least = 0.01 * (found.total - ALLOWANCE_BYTES)
        assert min(found.total - proposal.total for proposal in found.proposals) >= least > 1000


def test_more_ranks_are_proposed_without_changes_that_save_next_to_nothing(settings: dict[str, Any]) -> None:
    """Whatever the second beta is: adamw-8bit takes any."""
    config = run_config(
        settings, device="auto", memory__recompute="full", data__micro_packs=1, optim__betas=[0.9, 0.999]
    )
    found = {proposal.change: proposal.total for proposal in dry_run(config, 1, fits_all_but(1)).proposals}
    assert "optim.name: adamw-8bit" in found
    alone = {change for change in found if "ranks" not in change}
    for change in found.keys() - alone:
        *before, ranks = change.rpartition(" and ")
        assert ranks.endswith(" ranks")
        assert before[0] in {"", *alone}


def test_shapes_are_enough_where_there_are_no_weights(settings: dict[str, Any]) -> None:
    random = dry_run(run_config(settings), 1, BIG)
    found = dry_run(run_config(settings, model__init="pretrained"), 1, BIG)
    assert found.memory == random.memory
    assert [line for line in found.remarks if line not in random.remarks] == [
        f"{settings['model.path']} has no weights: shapes are enough here, but `lmms train` reads them"
    ]


@pytest.mark.parametrize(("packs", "before"), [(2, True), (8, False)])
def test_gradients_that_are_not_all_there_at_the_peak_have_a_line(
    settings: dict[str, Any], packs: int, before: bool
) -> None:
    """With several passes a step, all gradients are there from the second on."""
    found = dry_run(run_config(settings, data__global_packs=packs), 1, BIG)
    lines = [line for line in found.remarks if line.startswith("gradients are ")]
    every = found.memory[0]["weights"]
    assert (found.memory[0]["gradients"] < 0.99 * every) == before
    assert len(lines) == before


def test_a_rate_of_a_frozen_part_and_a_long_warm_up_are_remarked(settings: dict[str, Any]) -> None:
    rates = {"optim.lr": {"default": 1e-3, "vision": 1e-4}, "train": {"vision": "frozen"}, "optim.warmup_steps": 20}
    said = " ".join(dry_run(run_config(settings | rates), 1, BIG).remarks)
    assert "optim.lr.vision is set, but nothing of vision is trained" in said
    assert "warms up for 20 steps, and the run has 5" in said


def test_weights_are_checked_by_name_and_shape(settings: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(settings["model.path"], tmp_path / "model")
    config = run_config(settings | {"model.path": str(tmp_path / "model"), "model.init": "pretrained"})
    hf = open_run(config, lambda coming: None).model.hf
    tensors = {name: torch.zeros(parameter.shape) for name, parameter in hf.named_parameters()}
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    dry_run(config, 1, BIG)
    save_file({**tensors, "lm_head.weight": torch.zeros(3, 3)}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=r"lm_head.weight has shape \[3, 3\]"):
        dry_run(config, 1, BIG)


@pytest.fixture(scope="module")
def trained(settings: dict[str, Any]) -> TrainConfig:
    config = run_config(settings, max_steps=2, output=str(Path(settings["output"]).with_name("trained")))
    train(config, silent)
    return replace(config, max_steps=5)


def test_a_run_that_goes_on_has_the_rest_to_do_at_its_measured_rate(trained: TrainConfig) -> None:
    found: DryRun = dry_run(trained, 1, BIG)
    assert found.resumes == str(Path(trained.output) / checkpoint_name(2))
    assert found.length.steps == 3
    assert found.length.tokens_per_s is not None
    assert found.length.tokens_per_s > 0


def test_the_measured_rate_is_that_of_steps_without_a_profiler(trained: TrainConfig, tmp_path: Path) -> None:
    output = Path(shutil.copytree(trained.output, tmp_path / "run"))
    lines = [{"step": i, "tokens_per_s": 1.0 if i < 4 else 7.0, "profiled": i < 4} for i in range(1, 6)]
    (output / METRICS_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert dry_run(replace(trained, output=str(output)), 1, BIG).length.tokens_per_s == 7.0


def test_a_checkpoint_takes_as_much_main_memory_as_it_holds(
    trained: TrainConfig, settings: dict[str, Any], tmp_path: Path
) -> None:
    some = {"default": "full", "vision": "frozen"}
    in_bf16 = run_config(settings, max_steps=1, train=some, optim__name="adamw-bf16", output=str(tmp_path))
    train(in_bf16, silent)
    for config, step in ((trained, 2), (in_bf16, 1)):
        stored = FileSystemReader(Path(config.output) / checkpoint_name(step)).read_metadata().state_dict_metadata
        tensors = [entry for entry in stored.values() if isinstance(entry, TensorStorageMetadata)]
        held = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in tensors)
        alone, *shared = (dry_run(config, ranks, BIG).staged for ranks in (1, 4))
        assert alone == held
        assert shared[0] == pytest.approx(held / 4, rel=0.1)


def test_what_no_checkpoint_goes_on_with_is_marked(settings: dict[str, Any], trained: TrainConfig) -> None:
    fresh, goes_on = (
        {p.change: p.from_start for p in dry_run(config, 1, fits_all_but(1)).proposals}
        for config in (run_config(settings), trained)
    )
    assert fresh.keys() == goes_on.keys()
    assert not any(fresh.values())
    assert {change for change, from_start in goes_on.items() if from_start} == {
        "train.vision: frozen",
        "optim.name: adamw-8bit",
    }
    # What is said is what resume does.
    with pytest.raises(TrainError, match="was trained with train"):
        dry_run(replace(trained, train={"default": "full", "vision": "frozen"}), 1, BIG)
    with pytest.raises(TrainError, match=r"was trained with optim\.name"):
        dry_run(replace(trained, optim=replace(trained.optim, name="adamw-8bit")), 1, BIG)
    dry_run(replace(trained, data=replace(trained.data, micro_packs=1)), 1, BIG)


def test_a_checkpoint_of_other_settings_is_an_error(trained: TrainConfig) -> None:
    with pytest.raises(TrainError, match="was trained with seed 0, this run has 1"):
        dry_run(replace(trained, seed=1), 1, BIG)
    with pytest.raises(TrainError, match="holds later checkpoints"):
        dry_run(replace(trained, resume="never"), 1, BIG)


def test_an_output_of_broken_checkpoints_alone_is_an_error_and_stays_as_it_is(
    trained: TrainConfig, tmp_path: Path
) -> None:
    broken = tmp_path / checkpoint_name(2)
    shutil.copytree(Path(trained.output) / broken.name, broken)
    next(broken.glob("*.distcp")).unlink()
    with pytest.raises(TrainError, match="holds none but broken checkpoints"):
        dry_run(replace(trained, output=str(tmp_path)), 1, BIG)
    assert broken.exists()


def test_cards_are_found_by_name_in_any_case_and_others_are_refused_with_the_names() -> None:
    assert find_card(" h100 80gb") == Card(name="H100 80GB", memory=MEMORY["H100 80GB"], peak_flops=989e12)
    with pytest.raises(ConfigError, match=r"--card is 'TPU', expected one of: RTX 4090 24GB, .*H100 80GB") as error:
        find_card("TPU")
    assert all(name in str(error.value) for name in MEMORY)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_card_all_known_ones_are_shown() -> None:
    assert [card.name for card in cards_to_show(None)] == list(MEMORY)
    assert [card.name for card in cards_to_show("A100 40GB")] == ["A100 40GB"]


def test_the_rate_is_that_of_the_newest_whole_lines_that_have_one(trained: TrainConfig) -> None:
    path = Path(trained.output) / METRICS_NAME
    kept = path.read_text()
    lines = [json.dumps({"step": step, "tokens_per_s": rate}) for step, rate in enumerate([1.0] * 200 + [7.0] * 100)]
    try:
        path.write_text("\n".join([*lines, '{"step": 300}', '{"step": 301, "tok']))
        assert dry_run(trained, 1, BIG).length.tokens_per_s == 7.0
    finally:
        path.write_text(kept)
