"""Pretrained weights arrive as from_pretrained would read them, whole or by rows, and what does not fit is named."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM

from lmms.configs.errors import ModelError
from lmms.train.checkpoint.pretrained import load_pretrained, local_rows
from lmms.train.model.build import blocks, build_model, materialize
from lmms.train.model.forward import TrainModel
from lmms.train.parallel.sharding import local_of, shard_model
from lmms.train.parallel.world import World, start_world, stop_world
from tests.kit.model.models import FAMILIES, tiny_config, tiny_model
from tests.kit.ranks import on_ranks

CPU = torch.device("cpu")


def empty_model(family: str, tied: bool) -> TrainModel:
    model = build_model(tiny_config(family, tied), "none")
    materialize(model, CPU)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    return model


@contextmanager
def rank_of(ranks: int, rank: int) -> Iterator[World]:
    """One of several ranks, whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield World(rank, ranks, CPU, init_device_mesh("cpu", (ranks,)))
    finally:
        dist.destroy_process_group()


# transformers never ties the weights of Qwen2-Audio.
@pytest.mark.parametrize(
    ("family", "tied"), [(f, t) for f in FAMILIES for t in (False, True) if f != "qwen2_audio" or not t]
)
def test_every_parameter_arrives(tmp_path: Path, family: str, tied: bool) -> None:
    saved = tiny_model(family, seed=1, tied=tied)
    saved.hf.save_pretrained(tmp_path)
    assert any(name.endswith("lm_head.weight") for name in load_file(tmp_path / "model.safetensors")) != tied
    model = empty_model(family, tied)
    load_pretrained(model.hf, tmp_path)
    expected = dict(saved.named_parameters())
    assert dict(model.named_parameters()).keys() == expected.keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert (model.hf.lm_head.weight is model.hf.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_names_of_hub_checkpoints_become_those_of_todays_modules(tmp_path: Path, family: str) -> None:
    saved = tiny_model(family, seed=1)
    hub = {
        name.removeprefix("hf.").replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in saved.state_dict().items()
    }
    assert {name.split(".")[0] for name in hub} == {"visual", "model", "lm_head"}
    hub["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(hub, tmp_path / "model.safetensors", {"format": "pt"})
    model = empty_model(family, tied=False)
    load_pretrained(model.hf, tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved.get_parameter(name)), name


def test_several_files_in_bf16_become_fp32(tmp_path: Path) -> None:
    saved = tiny_model("qwen3_vl", seed=1)
    saved.hf.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    model = empty_model("qwen3_vl", tied=False)
    load_pretrained(model.hf, tmp_path)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, saved.get_parameter(name).float()), name


def test_each_rank_gets_its_rows_also_when_they_do_not_divide(tmp_path: Path) -> None:
    saved = tiny_model("qwen2_5_vl", seed=1, tied=True)
    saved.hf.save_pretrained(tmp_path)
    ranks = 5
    parts: dict[str, list[torch.Tensor]] = {}
    for rank in range(ranks):
        with rank_of(ranks, rank) as world:
            model = build_model(tiny_config("qwen2_5_vl", tied=True), "none")
            shard_model(model, blocks(model), world, torch.float32)
            materialize(model, CPU)
            load_pretrained(model.hf, tmp_path)
            for name, parameter in model.named_parameters():
                rows = local_rows(parameter)
                assert rows.stop - rows.start == len(local_of(parameter))
                parts.setdefault(name, []).append(local_of(parameter).detach().clone())
    for name, parameter in saved.named_parameters():
        assert torch.equal(torch.cat(parts[name]), parameter), name
    assert any(len({len(part) for part in pieces}) > 1 for pieces in parts.values())


def anonymous_bytes() -> int:
    """Main memory of this process, but for files that are mapped into it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


@contextmanager
def peak_growth() -> Iterator[list[int]]:
    """A list that gets by how much anonymous_bytes grew at most within the block.

    A thread looks every millisecond. On a busy machine it may look much later, so the
    end of the block is looked at too.
    """
    before, peak, over = anonymous_bytes(), [0], threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            peak[0] = max(peak[0], anonymous_bytes() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        peak[0] = max(peak[0], anonymous_bytes() - before)


def read_as_rank(rank: int, ranks: int, folder: Path) -> None:
    """Build, shard and read the model of a folder; leaves what that took and what this rank owns, in bytes."""
    world = start_world("cpu")
    config = AutoConfig.from_pretrained(folder)
    # Whatever is imported or made once.
    build_model(tiny_config("qwen3"), "none")
    with peak_growth() as peak:
        model = build_model(config, "none")
        shard_model(model, blocks(model), world, torch.float32)
        materialize(model, world.device)
        load_pretrained(model.hf, folder)
    own = sum(local_of(parameter).nbytes for parameter in model.parameters())
    (folder / f"{rank}.json").write_text(json.dumps({"peak": peak[0], "own": own}))
    stop_world()


def test_no_rank_ever_holds_more_than_its_own_rows(tmp_path: Path) -> None:
    """A folder of 200 MB: as fp32 master weights 400 MB, of which each of two ranks may hold its half."""
    sizes = {"hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 6, "vocab_size": 20_000}
    config = AutoConfig.for_model("qwen3", **sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=128)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path, max_shard_size="60MB")
    stored = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert stored > 200e6
    on_ranks(read_as_rank, 2, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["own"] == pytest.approx(stored, rel=0.01)
        # A copy of the folder would be as much again, one of the fp32 weights twice as much.
        assert found["own"] <= found["peak"] < 1.2 * found["own"]


def edited(folder: Path, change: dict[str, torch.Tensor | None]) -> Path:
    """Weights of a tied Qwen3, with some tensors put in, replaced or (None) left out."""
    tiny_model("qwen3", seed=1, tied=True).hf.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors") | change
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, r"model\.norm\.weight is missing"),
        ({"model.extra.weight": torch.zeros(2)}, r"model\.extra\.weight is unexpected"),
        ({"model.norm.weight": torch.zeros(31)}, r"model\.norm\.weight has shape \[31\], expected \[32\]"),
        ({"lm_head.weight": torch.zeros(64, 32)}, "differs from the weight that config.json ties it to"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_pretrained(empty_model("qwen3", tied=True).hf, edited(tmp_path, change))


def test_tied_weights_stored_under_both_names_are_accepted_when_they_are_equal(tmp_path: Path) -> None:
    head = tiny_model("qwen3", seed=1, tied=True).hf.lm_head.weight.detach()
    model = empty_model("qwen3", tied=True)
    load_pretrained(model.hf, edited(tmp_path, {"lm_head.weight": head.clone()}))
    assert torch.equal(model.hf.lm_head.weight, head)


def test_a_folder_without_weights_says_how_to_start_from_random_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.safetensors.*model\.init: random"):
        load_pretrained(empty_model("qwen3", tied=True).hf, tmp_path)


def test_damaged_or_missing_files_are_named(tmp_path: Path) -> None:
    tiny_model("qwen3", tied=True).hf.save_pretrained(tmp_path, max_shard_size="20KB")
    model = empty_model("qwen3", tied=True)
    first = min(tmp_path.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-8])
    with pytest.raises(ModelError, match=rf"{first.name} is damaged"):
        load_pretrained(model.hf, tmp_path)
    first.unlink()
    with pytest.raises(ModelError, match=rf"{first.name} is missing"):
        load_pretrained(model.hf, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(ModelError, match="damaged"):
        load_pretrained(model.hf, tmp_path)


@pytest.mark.parametrize("index", [[], {"weight_map": []}, {"weight_map": {"model.norm.weight": 3}}, "text"])
def test_an_index_that_is_no_table_of_files_is_named(tmp_path: Path, index: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="its safetensors are damaged"):
        load_pretrained(empty_model("qwen3", tied=True).hf, tmp_path)
