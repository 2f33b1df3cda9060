"""What we read from a model folder is what transformers reads from it, and its fingerprint means the same model."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.contract.model_folder import PREP_FILES, ModelFolder, read_model_folder, resolve_model
from lmms.configs.errors import ModelError

TEXT_FOLDERS = ["qwen2.5-text", "qwen3-text"]
VISION_FOLDERS = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"]
FAMILIES = {
    "qwen2.5-text": "qwen2",
    "qwen3-text": "qwen3",
    "qwen2-vl": "qwen2_vl",
    "qwen2.5-vl": "qwen2_5_vl",
    "qwen3-vl": "qwen3_vl",
}

TINY: dict[str, Any] = {
    "config.json": {"model_type": "qwen2_5_vl", "image_token_id": 4},
    "tokenizer.json": {
        "model": {"type": "BPE", "unk_token": None, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "added_tokens": [{"id": 3, "content": "<|im_end|>"}, {"id": 4, "content": "<|image_pad|>"}],
    },
    "tokenizer_config.json": {"chat_template": "from tokenizer_config", "eos_token": "<|im_end|>"},
    "preprocessor_config.json": {
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}


def write_json(path: Path, body: Any) -> None:
    path.write_text(json.dumps(body), encoding="utf-8")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model folder of a few hundred bytes."""
    for name, body in TINY.items():
        write_json(tmp_path / name, body)
    return tmp_path


@pytest.fixture(scope="session")
def ours(model_folders: dict[str, Path]) -> dict[str, ModelFolder]:
    """What we read from each real folder, by name."""
    return {name: read_model_folder(folder) for name, folder in model_folders.items()}


def change(folder: Path, name: str, edit: Callable[[Any], object]) -> None:
    body = json.loads((folder / name).read_text(encoding="utf-8"))
    edit(body)
    write_json(folder / name, body)


# Golden: transformers reads the same


@pytest.mark.parametrize("name", TEXT_FOLDERS)
def test_a_text_folder_reads_as_its_tokenizer(
    name: str, model_folders: dict[str, Path], ours: dict[str, ModelFolder]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folders[name])
    found = ours[name]
    assert found.family == FAMILIES[name]
    assert found.chat_template == tokenizer.chat_template
    assert found.special_tokens == tokenizer.special_tokens_map
    assert (found.vision, found.image_token_id) == (None, None)


@pytest.mark.parametrize("name", VISION_FOLDERS)
def test_a_vision_folder_reads_as_its_processor(
    name: str, model_folders: dict[str, Path], ours: dict[str, ModelFolder]
) -> None:
    from transformers import AutoConfig, AutoProcessor

    processor = AutoProcessor.from_pretrained(model_folders[name])
    images = processor.image_processor
    found = ours[name]
    assert found.family == FAMILIES[name]
    assert found.chat_template == processor.chat_template
    assert found.special_tokens == processor.tokenizer.special_tokens_map
    assert found.image_token_id == processor.image_token_id
    assert found.image_token_id == AutoConfig.from_pretrained(model_folders[name]).image_token_id
    assert found.vision is not None
    assert (found.vision.patch_size, found.vision.merge_size) == (images.patch_size, images.merge_size)
    assert found.vision.temporal_patch_size == images.temporal_patch_size
    assert (found.vision.min_pixels, found.vision.max_pixels) == (images.size.shortest_edge, images.size.longest_edge)
    assert found.vision.image_mean == tuple(images.image_mean)
    assert found.vision.image_std == tuple(images.image_std)


@pytest.mark.parametrize("name", ["qwen3-text", "qwen2.5-vl"])
def test_a_folder_that_transformers_saved_again_is_the_same_model(
    name: str, model_folders: dict[str, Path], ours: dict[str, ModelFolder], tmp_path: Path
) -> None:
    """transformers 5 writes other files (chat_template.jinja, processor_config.json) and other JSON."""
    from transformers import AutoProcessor, AutoTokenizer

    kind = AutoProcessor if name in VISION_FOLDERS else AutoTokenizer
    kind.from_pretrained(model_folders[name]).save_pretrained(tmp_path)
    shutil.copy(model_folders[name] / "config.json", tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    found = read_model_folder(tmp_path)
    assert found.fingerprints == ours[name].fingerprints
    assert replace(found, path=ours[name].path, tokenizer_json=ours[name].tokenizer_json) == ours[name]


def test_two_families_have_different_fingerprints(ours: dict[str, ModelFolder]) -> None:
    for part in ("tokenizer", "template", "vision"):
        assert ours["qwen2.5-vl"].fingerprints[part] != ours["qwen3-vl"].fingerprints[part]


TEMPLATE_FILES = ["chat_template.json", "chat_template.jinja"]


@pytest.mark.parametrize(
    "files", [TEMPLATE_FILES, TEMPLATE_FILES[:1], TEMPLATE_FILES[1:]], ids=["both", "json", "jinja"]
)
def test_of_several_templates_the_one_is_read_that_transformers_reads(files: list[str], tiny: Path) -> None:
    from transformers import AutoProcessor, AutoTokenizer

    change(tiny, "tokenizer_config.json", lambda body: body.update(tokenizer_class="Qwen2Tokenizer"))
    change(tiny, "preprocessor_config.json", lambda body: body.update(processor_class="Qwen2_5_VLProcessor"))
    for file in files:
        text = f"from {file}"
        (tiny / file).write_text(json.dumps({"chat_template": text}) if file.endswith("json") else text)
    assert read_model_folder(tiny).chat_template == AutoProcessor.from_pretrained(tiny).chat_template
    change(tiny, "config.json", lambda body: body.update(model_type="qwen2"))
    assert read_model_folder(tiny).chat_template == AutoTokenizer.from_pretrained(tiny).chat_template


# Fingerprints


def test_fingerprints_do_not_depend_on_how_the_json_is_written(tiny: Path) -> None:
    expected = read_model_folder(tiny)
    for name in TINY:
        body = json.loads((tiny / name).read_text())
        backwards = dict(reversed(body.items()))
        (tiny / name).write_text(json.dumps(backwards, indent=3, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_model_folder(tiny) == expected


@pytest.mark.parametrize(
    "edit",
    [
        lambda body: body["model"].update(merges=["a b"]),
        lambda body: body["model"].update(dropout=None, ignore_merges=False, continuing_subword_prefix=""),
        lambda body: body["model"].pop("unk_token"),
        lambda body: body["pre_tokenizer"].update(trim_offsets=True),
        lambda body: body.update(decoder={"type": "ByteLevel"}, truncation=None, version="1.0"),
    ],
    ids=["merges as text", "unset options", "an unset option left out", "trim_offsets", "what decodes"],
)
def test_the_tokenizer_fingerprint_ignores_what_moves_no_id(edit: Callable[[Any], object], tiny: Path) -> None:
    before = read_model_folder(tiny).fingerprints
    change(tiny, "tokenizer.json", edit)
    assert read_model_folder(tiny).fingerprints == before


@pytest.mark.parametrize(
    ("part", "name", "edit"),
    [
        ("tokenizer", "tokenizer.json", lambda body: body["model"]["merges"].append(["ab", "a"])),
        ("tokenizer", "tokenizer.json", lambda body: body["model"]["vocab"].update(a=1, b=0)),
        ("tokenizer", "tokenizer.json", lambda body: body["model"].update(ignore_merges=True)),
        ("tokenizer", "tokenizer.json", lambda body: body["added_tokens"].append({"id": 5, "content": "<think>"})),
        ("tokenizer", "tokenizer.json", lambda body: body.update(normalizer=None)),
        ("tokenizer", "tokenizer.json", lambda body: body["pre_tokenizer"].update(add_prefix_space=True)),
        ("template", "tokenizer_config.json", lambda body: body.update(chat_template="another")),
        ("vision", "preprocessor_config.json", lambda body: body.update(max_pixels=10**6)),
        ("vision", "preprocessor_config.json", lambda body: body.update(image_mean=[0.1, 0.5, 0.5])),
    ],
    ids=["merges", "vocabulary", "option", "added token", "normalizer", "pre-tokenizer", "template", "size", "mean"],
)
def test_each_fingerprint_changes_with_what_it_stands_for(
    part: str, name: str, edit: Callable[[Any], object], tiny: Path
) -> None:
    before = read_model_folder(tiny).fingerprints
    change(tiny, name, edit)
    after = read_model_folder(tiny).fingerprints
    assert {key for key in before if before[key] != after[key]} == {part}


# Settings


def test_given_pixel_limits_override_the_processors(tiny: Path) -> None:
    vision = read_model_folder(tiny, min_pixels=5000, max_pixels=6000).vision
    assert vision is not None
    assert (vision.min_pixels, vision.max_pixels) == (5000, 6000)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"min_pixels": 1, "max_pixels": 2, "size": {"shortest_edge": 3, "longest_edge": 4}}, (1, 2)),
        ({"size": {"shortest_edge": 3, "longest_edge": 4}}, (3, 4)),
        ({}, (56 * 56, 28 * 28 * 1280)),
    ],
)
def test_pixel_limits_are_found_where_processors_write_them(
    size: dict[str, Any], expected: tuple[int, int], tiny: Path
) -> None:
    def edit(body: dict[str, Any]) -> None:
        del body["min_pixels"], body["max_pixels"]
        body.update(size)

    change(tiny, "preprocessor_config.json", edit)
    vision = read_model_folder(tiny).vision
    assert vision is not None
    assert (vision.min_pixels, vision.max_pixels) == expected


def test_the_default_of_several_named_templates_is_taken(tiny: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chat"}]
    change(tiny, "tokenizer_config.json", lambda body: body.update(chat_template=named))
    assert read_model_folder(tiny).chat_template == "chat"


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            "config.json",
            lambda body: body.update(model_type="llama"),
            "model_type 'llama' is not supported; expected one",
        ),
        ("config.json", lambda body: body.pop("model_type"), "model_type None is not supported"),
        (
            "config.json",
            lambda body: body.update(image_token_id=3),
            "image_token_id is 3 in config.json, <|image_pad|> is",
        ),
        ("tokenizer.json", lambda body: body.pop("added_tokens"), "<|image_pad|> is [] in tokenizer.json"),
        ("tokenizer.json", lambda body: body.pop("model"), "tokenizer.json holds no byte-pair model with merges"),
        ("tokenizer_config.json", lambda body: body.pop("chat_template"), "has no chat template (chat_template.json,"),
        (
            "preprocessor_config.json",
            lambda body: body.pop("patch_size"),
            "preprocessor_config.json lacks 'patch_size'",
        ),
        ("preprocessor_config.json", lambda body: body.update(resample=2), "resample is 2, only 3 is supported"),
        ("preprocessor_config.json", lambda body: body.update(min_pixels=10**9), "is above the largest 12845056"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    name: str, edit: Callable[[Any], object], message: str, tiny: Path
) -> None:
    change(tiny, name, edit)
    with pytest.raises(ModelError) as caught:
        read_model_folder(tiny)
    assert message in str(caught.value)
    assert str(tiny) in str(caught.value)


@pytest.mark.parametrize("name", TINY)
def test_a_missing_file_is_named(name: str, tiny: Path) -> None:
    (tiny / name).unlink()
    with pytest.raises(ModelError) as caught:
        read_model_folder(tiny)
    assert f"{tiny / name} is missing: not a complete model folder" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "is not JSON"), (b"[]", "holds a list"), (b"\xff", "not UTF-8")]
)
def test_a_damaged_file_is_named(content: bytes, message: str, tiny: Path) -> None:
    (tiny / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_model_folder(tiny)
    assert str(tiny / "tokenizer.json") in str(caught.value)
    assert message in str(caught.value)


def test_special_tokens_are_read_as_text_or_as_objects(tiny: Path) -> None:
    tokens = {"bos_token": None, "pad_token": {"content": "<pad>", "special": True}, "add_bos_token": False}
    change(tiny, "tokenizer_config.json", lambda body: body.update(tokens))
    assert read_model_folder(tiny).special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<pad>"}


# Folder or hub id


def test_a_folder_resolves_to_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path), PREP_FILES) == tmp_path


@pytest.mark.parametrize("model", ["./none", "/none/here", "~/none/here", "gpt2", "a/b/c"])
def test_what_is_neither_folder_nor_id_is_refused(model: str) -> None:
    with pytest.raises(ModelError, match="is neither a folder nor a hub id of the form organisation/name"):
        resolve_model(model, PREP_FILES)


def resolve_in_process(model: str, **environment: str) -> str:
    """The folder or the ModelError, from a fresh process: huggingface_hub reads its environment once, at import."""
    code = """
import sys
from lmms.configs.errors import ModelError
from lmms.configs.contract.model_folder import PREP_FILES, resolve_model
try:
    print(resolve_model(sys.argv[1], PREP_FILES))
except ModelError as error:
    print("ModelError:", error)
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    run = subprocess.run(
        [sys.executable, "-c", code, model], env=kept | environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """A hub cache that holds one snapshot of tiny-org/tiny-model."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--tiny-org--tiny-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name, body in TINY.items():
        write_json(snapshot / name, body)
    return tmp_path


def test_a_hub_id_resolves_to_its_cached_snapshot_without_a_network(hub_cache: Path) -> None:
    found = resolve_in_process("tiny-org/tiny-model", HF_HUB_CACHE=str(hub_cache), HF_HUB_OFFLINE="1")
    (snapshot,) = (hub_cache / "models--tiny-org--tiny-model" / "snapshots").iterdir()
    assert found == str(snapshot)
    assert read_model_folder(Path(found)).family == "qwen2_5_vl"


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_an_id_that_cannot_be_fetched_is_a_model_error(environment: dict[str, str], hub_cache: Path) -> None:
    found = resolve_in_process("tiny-org/other-model", HF_HUB_CACHE=str(hub_cache), **environment)
    assert found.startswith("ModelError: model 'tiny-org/other-model' is no folder here and could not be fetched")


def test_a_model_reads_videos_if_config_and_tokenizer_name_the_placeholder(tiny: Path) -> None:
    assert read_model_folder(tiny).video_token_id is None
    change(tiny, "config.json", lambda body: body.update(video_token_id=5))
    assert read_model_folder(tiny).video_token_id is None
    change(tiny, "tokenizer.json", lambda body: body["added_tokens"].append({"id": 5, "content": "<|video_pad|>"}))
    assert read_model_folder(tiny).video_token_id == 5
    change(tiny, "config.json", lambda body: body.update(video_token_id=6))
    with pytest.raises(ModelError, match=r"video_token_id is 6 in config\.json"):
        read_model_folder(tiny)


def test_videos_have_the_settings_of_their_own_file_and_the_colours_of_pictures(tiny: Path) -> None:
    folder = read_model_folder(tiny)
    assert folder.video is not None
    assert (folder.video.areas, folder.video.max_pixels, folder.video.fps) == ("frame", 12845056, 2.0)
    settings = {**TINY["preprocessor_config.json"], "size": {"shortest_edge": 28, "longest_edge": 5000}, "fps": 3}
    settings = {name: value for name, value in settings.items() if name not in ("min_pixels", "max_pixels")}
    write_json(tiny / "video_preprocessor_config.json", settings)
    folder = read_model_folder(tiny)
    assert folder.video is not None
    assert (folder.video.min_pixels, folder.video.max_pixels, folder.video.fps) == (28, 5000, 3)
    write_json(tiny / "video_preprocessor_config.json", {**settings, "image_mean": [0.1, 0.5, 0.5]})
    with pytest.raises(ModelError, match=r"image_mean is .* for pictures; expected the same for both"):
        read_model_folder(tiny)
