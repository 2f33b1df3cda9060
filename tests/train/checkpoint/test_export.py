"""An exported folder is the checkpoint, for anything that reads Hugging Face folders."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM, PreTrainedModel

from lmms.configs.contract.model_folder import read_model_folder
from lmms.configs.errors import ModelError, TrainError
from lmms.configs.load import to_yaml
from lmms.train.batch.batch import Batch
from lmms.train.checkpoint import adapter as peft_folder
from lmms.train.checkpoint.export import export
from lmms.train.checkpoint.keep import BEST_NAME, choose_checkpoint
from lmms.train.checkpoint.model_folder import exported_config
from lmms.train.checkpoint.read import checkpoint_name, load_checkpoint, model_shapes, tensors_of
from lmms.train.model.build import build_model, materialize
from lmms.train.model.forward import TrainModel, last_hidden_state
from lmms.train.parallel.world import World, start_world, stop_world
from lmms.train.run import train
from tests.kit.checkpoints import save
from tests.kit.model.models import (
    FAMILIES,
    SOUND_FAMILIES,
    VISION_FAMILIES,
    joined,
    make_pack,
    picture,
    talk,
    tiny_config,
    tiny_model,
    tiny_recipe,
)
from tests.kit.model.readers import inputs_of
from tests.kit.runs import run_config, silent, write_model_folder, write_run


def trained(folder: Path, family: str, tied: bool = False) -> Path:
    """The checkpoint of a run of one step."""
    settings = write_run(folder, family, tied=tied)
    (folder / "model" / "generation_config.json").write_text(json.dumps({"max_new_tokens": 3, "do_sample": False}))
    (folder / "model" / "model.safetensors.index.json").write_text("{}")
    train(run_config(settings, max_steps=1), silent)
    return folder / "out" / checkpoint_name(1)


def reloaded(folder: Path, family: str) -> PreTrainedModel:
    auto = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
    auto = AutoModelForMultimodalLM if family in SOUND_FAMILIES else auto
    model, info = auto.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def of_checkpoint(checkpoint: Path, family: str, tied: bool) -> TrainModel:
    model = build_model(tiny_config(family, tied), "none")
    materialize(model, torch.device("cpu"))
    load_checkpoint(checkpoint, tensors_of(model, None), alone=True)
    return model.eval()


@pytest.mark.parametrize(
    ("family", "tied"), [(family, False) for family in FAMILIES] + [("qwen3", True), ("qwen3_vl", True)]
)
def test_the_reloaded_model_has_the_checkpoints_logits_and_generates(tmp_path: Path, family: str, tied: bool) -> None:
    checkpoint = trained(tmp_path, family, tied)
    out = export(checkpoint, tmp_path / "exported")
    model, expected = reloaded(out, family), of_checkpoint(checkpoint, family, tied)
    for name, parameter in expected.hf.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name

    batch = batch_of(family)
    inputs = inputs_of(family, batch)
    with torch.no_grad():
        hidden = last_hidden_state(expected.hf, batch, step_has_images=batch.images > 0)
        torch.testing.assert_close(model(**inputs).logits, expected.hf.lm_head(hidden), rtol=1e-5, atol=1e-5)
    assert model.generate(**inputs, pad_token_id=0).shape[1] == batch.input_ids.shape[1] + 3


def batch_of(family: str) -> Batch:
    """A conversation, with a picture where the family sees any."""
    images = [picture(1)] if family in VISION_FAMILIES else []
    return joined([make_pack([talk(5, 12, images)])], tiny_recipe(family))


LORA_CASES: dict[str, dict[str, Any]] = {
    "qwen3": {"train": {"llm": "lora"}, "lora.rank": 4, "lora.alpha": 12},
    "qwen2": {"train": {"llm": "lora"}, "lora.bias": "lora_only", "lora.targets": ["q_proj", "down_proj"]},
    "qwen2_vl": {"train": {"default": "lora"}, "lora.bias": "all", "lora.modules_to_save": ["merger"]},
    "qwen2_5_vl": {"train": {"llm": "lora", "vision": "frozen"}, "lora.modules_to_save": ["lm_head"], "tied": True},
    "qwen3_vl": {"train": {"default": "full", "llm": "lora"}, "lora.target_regex": r"layers\.[02]\..*_proj"},
}


def trained_lora(folder: Path, family: str) -> tuple[Path, dict[str, Any]]:
    """(the checkpoint of a run of two steps with LoRA that no longer start at 0, its settings)."""
    case = LORA_CASES[family]
    settings = write_run(folder, family, tied=case.get("tied", False)) | {"model.init": "pretrained"}
    tiny_model(family, tied=case.get("tied", False), seed=2).hf.save_pretrained(folder / "model")
    settings |= {key: value for key, value in case.items() if key != "tied"}
    train(run_config(settings, max_steps=2, optim__lr=0.05), silent)
    return folder / "out" / checkpoint_name(2), settings


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("family", LORA_CASES)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_peft_makes_of_base_and_adapter_what_was_trained_and_merged_is_the_same(tmp_path: Path, family: str) -> None:
    checkpoint, settings = trained_lora(tmp_path, family)
    adapter = export(checkpoint, tmp_path / "adapter")
    merged = export(checkpoint, tmp_path / "merged", merged=True)
    carried = names_in(tmp_path / "model") - {"config.json", "model.safetensors"}
    assert {"tokenizer.json", "tokenizer_config.json"} <= carried
    assert names_in(adapter) == {"adapter_config.json", "adapter_model.safetensors"} | carried
    for name in carried:
        assert (adapter / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    said = json.loads((adapter / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(tmp_path / "model")
    assert (merged / "tokenizer.json").is_file()

    batch, config, tied = batch_of(family), run_config(settings), LORA_CASES[family].get("tied", False)
    assert (said["r"], said["lora_alpha"]) == (config.lora.rank, config.lora.alpha)
    inputs = inputs_of(family, batch)
    own = tiny_model(family, tied=tied, seed=2, train=config.train, lora=config.lora).eval()
    load_checkpoint(checkpoint, tensors_of(own, None, model_shapes(checkpoint)), alone=True)
    with torch.no_grad():
        expected = own.hf.lm_head(last_hidden_state(own.hf, batch, batch.images > 0))
        base = reloaded(tmp_path / "model", family)
        assert float((base(**inputs).logits - expected).abs().max()) > 0.1
        found = peft.PeftModel.from_pretrained(base, adapter).eval()(**inputs).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(reloaded(merged, family)(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_may_be_half_as_large(tmp_path: Path) -> None:
    checkpoint, _ = trained_lora(tmp_path, "qwen3")
    exact, half = (
        load_file(export(checkpoint, tmp_path / dtype, dtype) / "adapter_model.safetensors")
        for dtype in ("fp32", "bf16")
    )
    assert exact.keys() == half.keys()
    assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in exact.items())


def test_only_lora_can_be_merged_and_only_on_a_base_that_others_have(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="holds no LoRA: there is nothing to merge"):
        export(trained(tmp_path / "full", "qwen2"), tmp_path / "exported", merged=True)
    settings = write_run(tmp_path / "lora", "qwen2") | {"train": {"llm": "lora"}}
    train(run_config(settings, max_steps=1), silent)
    checkpoint = tmp_path / "lora" / "out" / checkpoint_name(1)
    with pytest.raises(TrainError, match="random numbers of seed 0, which nobody else has; export --merged"):
        export(checkpoint, tmp_path / "exported")
    reloaded(export(checkpoint, tmp_path / "exported", merged=True), "qwen2")


def test_what_is_written_is_read_again_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, _ = trained_lora(tmp_path, "qwen3")

    def one_number(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"] + 1}, file, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(peft_folder, "load_file", lambda path: {**load_file(path), "base_model.model.x": torch.ones(1)})
        with pytest.raises(TrainError, match=r"base_model\.model\.x was read back as something else"):
            export(checkpoint, tmp_path / "adapter")
    with monkeypatch.context() as patch:
        patch.setattr("lmms.train.checkpoint.model_folder.save_file", one_number)
        with pytest.raises(TrainError, match=r"lm_head\.weight was read back as something else \(1 tensors"):
            export(checkpoint, tmp_path / "merged", merged=True)
    assert not (tmp_path / "adapter").exists()
    assert not (tmp_path / "merged").exists()


def test_what_belongs_to_the_model_goes_along(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, "qwen2_5_vl")
    out = export(checkpoint, tmp_path / "exported")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert not (out / "model.safetensors.index.json").exists()
    source = json.loads((tmp_path / "model" / "config.json").read_text())
    assert json.loads((out / "config.json").read_text()) == exported_config(source, "float32")


def test_of_a_whole_model_the_thinker_is_trained_and_exported_alone(tmp_path: Path) -> None:
    family = "qwen2_5_omni_thinker"
    settings = write_run(tmp_path, family) | {"model.init": "pretrained"}
    model, folder = tiny_model(family, seed=2), tmp_path / "model"
    as_published(folder, model)
    assert read_model_folder(folder).family == "qwen2_5_omni"
    train(run_config(settings, max_steps=1), silent)
    out = export(tmp_path / "out" / checkpoint_name(1), tmp_path / "exported")
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == (family, ["Qwen2_5OmniThinkerForConditionalGeneration"])
    assert {name.partition(".")[0] for name in load_file(out / "model.safetensors")} == {"thinker"}
    again, expected = reloaded(out, family), of_checkpoint(tmp_path / "out" / checkpoint_name(1), family, False)
    moved = 0
    for (name, parameter), before in zip(expected.hf.named_parameters(), model.hf.parameters(), strict=True):
        assert torch.equal(again.get_parameter(name), parameter), name
        moved += not torch.equal(parameter, before)
    # All but what nothing reads and steps without a gradient of the sounds leave.
    assert moved > 100
    # Shards of the whole model and of the thinker alone are the same.
    train(run_config(settings | {"model.path": str(out), "output": str(tmp_path / "next")}, max_steps=1), silent)


def as_published(folder: Path, model: TrainModel) -> None:
    """Make of a thinker's folder that of a whole model, with names of weights as they are published."""
    thinker = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "thinker_config": thinker}))
    short = {"model.language_model.": "model.", "model.audio_tower.": "audio_tower.", "model.visual.": "visual."}
    tensors = {"talker.model.norm.weight": torch.ones(3), "token2wav.code2wav.norm.weight": torch.ones(3)}
    for name, parameter in model.hf.named_parameters():
        prefix = next((long for long in short if name.startswith(long)), "")
        tensors[f"thinker.{short.get(prefix, '')}{name.removeprefix(prefix)}"] = parameter.detach().clone()
    save_file(tensors, folder / "model.safetensors")


def test_bf16_rounds_the_same_weights(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, "qwen3_vl")
    exact = reloaded(export(checkpoint, tmp_path / "exact"), "qwen3_vl")
    half = AutoModelForImageTextToText.from_pretrained(export(checkpoint, tmp_path / "half", "bf16"))
    for name, parameter in exact.named_parameters():
        assert torch.equal(half.get_parameter(name), parameter.bfloat16()), name


def test_an_export_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = trained(tmp_path, "qwen2")

    def full_disk(source: Path, target: Path) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("lmms.train.checkpoint.model_folder.shutil.copyfile", full_disk)
        with pytest.raises(TrainError, match="could not be written: no space left"):
            export(checkpoint, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir() if "exported" in path.name] == []
    export(checkpoint, tmp_path / "exported")
    with pytest.raises(TrainError, match="exists"):
        export(checkpoint, tmp_path / "exported")


def test_a_model_that_has_moved_is_named(tmp_path: Path) -> None:
    checkpoint, _ = trained_lora(tmp_path, "qwen3")
    merged = load_file(export(checkpoint, tmp_path / "merged", merged=True) / "model.safetensors")
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"is not there; put it back, or say where it is now: --model DIR$"):
        export(checkpoint, tmp_path / "again")
    moved = str(tmp_path / "moved")
    again = load_file(export(checkpoint, tmp_path / "again", merged=True, model=moved) / "model.safetensors")
    assert again.keys() == merged.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in merged.items())
    adapter = export(checkpoint, tmp_path / "adapter", model=moved)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == moved
    (tmp_path / "moved" / "tokenizer_config.json").write_text('{"chat_template": "another"}')
    with pytest.raises(ModelError, match=r"moved: its template is .*; name the folder of the run's model: --model DIR"):
        export(checkpoint, tmp_path / "other", model=moved)
    write_model_folder(tmp_path / "weightless", "qwen3")
    with pytest.raises(TrainError, match=r"neither that folder nor .*weightless has them now"):
        export(checkpoint, tmp_path / "other", model=str(tmp_path / "weightless"))


def test_folders_of_a_user_beside_the_export_stay(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, "qwen2")
    own = tmp_path / "exported.part" / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    out = export(checkpoint, tmp_path / "exported")
    assert own.read_text() == "mine"
    assert out.stat().st_mode == own.parent.stat().st_mode


@pytest.fixture
def world() -> Iterator[World]:
    yield start_world("cpu")
    stop_world()


def a_run(folder: Path, wants_best: bool) -> Path:
    """The output folder of a run that has no checkpoint yet."""
    settings = {"model.path": "m", "data.shards": "s", "output": str(folder), "max_steps": 9}
    config = run_config(settings, load_best_model_at_end=wants_best, metric_for_best_model="loss")
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def test_an_export_of_a_step_that_is_not_there_names_those_that_are(tmp_path: Path, world: World) -> None:
    run = a_run(tmp_path / "run", wants_best=False)
    save(run, world, 1, 2, 3)
    (run / checkpoint_name(3) / "complete.json").unlink()
    with pytest.raises(TrainError, match=r"step-00000009 is not there; .*run has step-00000001, step-00000002$"):
        export(run / checkpoint_name(9), tmp_path / "out")
    with pytest.raises(TrainError, match=r"3 is not a complete checkpoint: it has no complete.json; .*run has step-0"):
        choose_checkpoint(run / checkpoint_name(3))


def test_of_a_run_the_newest_complete_checkpoint_is_taken(tmp_path: Path, world: World) -> None:
    run = a_run(tmp_path / "run", wants_best=False)
    with pytest.raises(TrainError, match="holds no complete checkpoint yet"):
        choose_checkpoint(run)
    save(run, world, 1, 2, 3, best=1)
    (run / checkpoint_name(3) / "complete.json").unlink()
    assert choose_checkpoint(run) == (run / checkpoint_name(2), "the newest complete checkpoint of this run")
    assert choose_checkpoint(run / checkpoint_name(1)) == (run / checkpoint_name(1), "")


def test_of_a_run_that_asks_for_it_the_best_checkpoint_is_taken(tmp_path: Path, world: World) -> None:
    run = a_run(tmp_path / "run", wants_best=True)
    save(run, world, 1, 2)
    assert choose_checkpoint(run) == (
        run / checkpoint_name(2),
        "the newest complete checkpoint of this run, which has no best.json yet",
    )
    save(run, world, 3, 4, best=3)
    assert choose_checkpoint(run) == (run / checkpoint_name(3), "the best checkpoint of this run by best.json")
    (run / checkpoint_name(3)).rename(run / "elsewhere")
    with pytest.raises(TrainError, match=r"best\.json names step-00000003, which is not a complete checkpoint"):
        choose_checkpoint(run)
    (run / BEST_NAME).unlink()
    assert choose_checkpoint(run)[0] == run / checkpoint_name(4)
