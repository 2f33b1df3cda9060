"""A Hugging Face model folder like its source, with other weights: what `lmms export` writes.

transformers 5 saves configs and names that transformers 4 reads wrong or not at all, and many programs that serve
models are built on 4. So everything is taken from the source: config.json, and the names and files of the weights.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from lmms.configs.files import mode_by_umask, remove, write_whole
from lmms.train.checkpoint.pretrained import WEIGHTS_INDEX_NAME, WEIGHTS_NAME, source_names, tensor_files

_CONFIG, _THINKER = "config.json", "thinker_config"
_COPIED = ("*.json", "*.jinja", "*.txt", "additional_chat_templates/*.jinja")
"""Files of tokenizer, template, processor and generation settings."""
_NOT_COPIED = (_CONFIG, WEIGHTS_INDEX_NAME, "adapter_config.json")
_DTYPES = ("dtype", "torch_dtype")
"""The key of transformers from 4.56 on, and the older key, which all versions read."""


def copy_around(source: Path, folder: Path, chat_template: str | None) -> None:
    """Copy the files of a model besides its config and weights, byte for byte; a chat_template replaces the model's."""
    for path in sorted(path for pattern in _COPIED for path in source.glob(pattern)):
        target = folder / path.relative_to(source)
        if path.name not in _NOT_COPIED:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    if chat_template is not None:
        _replace_template(folder, chat_template)


def _replace_template(folder: Path, chat_template: str) -> None:
    """Leave one chat template in a model folder: programs differ in which of several files they read."""
    (folder / "chat_template.json").unlink(missing_ok=True)
    remove(folder / "additional_chat_templates")
    write_whole(folder / "chat_template.jinja", chat_template)
    tokenizer = folder / "tokenizer_config.json"
    body = json.loads(tokenizer.read_text(encoding="utf-8"))
    if body.pop("chat_template", None) is not None:
        write_whole(tokenizer, json.dumps(body, indent=2, ensure_ascii=False) + "\n")


def write_config(source: Path, dtype: torch.dtype, folder: Path, architecture: str) -> None:
    """Write the source's config.json with the type of the new weights; of a model that speaks, that of its thinker."""
    body = json.loads((source / _CONFIG).read_text(encoding="utf-8"))
    if _THINKER in body:
        body = {**body[_THINKER], "architectures": [architecture]}
    body = exported_config(body, str(dtype).removeprefix("torch."))
    write_whole(folder / _CONFIG, json.dumps(body, indent=2, ensure_ascii=False) + "\n")


def exported_config(body: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A config.json with all of its keys; `dtype` (such as bfloat16) is set at every depth that has a dtype.

    transformers 4 does not read `rope_parameters`, which transformers 5 saves: its older keys are added.
    """
    known = _with_dtype(body, dtype)
    if not any(key in known for key in _DTYPES):
        known["torch_dtype"] = dtype
    return _with_older_rope(known)


def _with_dtype(body: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    inner = {key: _with_dtype(value, dtype) if isinstance(value, dict) else value for key, value in body.items()}
    return {key: dtype if key in _DTYPES else value for key, value in inner.items()}


def _with_older_rope(body: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: _with_older_rope(value) if isinstance(value, dict) else value for key, value in body.items()}
    rope = known.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope and "rope_theta" not in known:
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        known |= {"rope_theta": rope["rope_theta"], "rope_scaling": None if scaling == _PLAIN else scaling}
    return known


_PLAIN = {"rope_type": "default"}


def write_weights(model: PreTrainedModel, source: Path, folder: Path) -> None:
    """Write a model's parameters under the names and into the files in which the source has them.

    A source without weights has no names or files: then the model's names are used, in one file.
    """
    parameters = dict(model.named_parameters())
    layout = _layout(model, source)
    for file, names in layout.items():
        tensors, written = {}, set[str]()
        for stored, name in names.items():
            # Tied weights may be stored under both names; the two tensors must not share memory.
            tensor = parameters[name].detach().contiguous()
            tensors[stored] = tensor.clone() if name in written else tensor
            written.add(name)
        with mode_by_umask(folder / file):
            save_file(tensors, folder / file, {"format": "pt"})
    if list(layout) != [WEIGHTS_NAME]:
        sizes = {name: tensor.nbytes for name, tensor in parameters.items()}
        total = sum(sizes[name] for names in layout.values() for name in names.values())
        places = {stored: file for file, names in layout.items() for stored in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_whole(folder / WEIGHTS_INDEX_NAME, json.dumps(index, indent=2) + "\n")


def _layout(model: PreTrainedModel, source: Path) -> dict[str, dict[str, str]]:
    """File name -> {stored name: parameter name}."""
    if not any(source.glob("*.safetensors")):
        return {WEIGHTS_NAME: {name: name for name, _ in model.named_parameters()}}
    layout: dict[str, dict[str, str]] = {}
    for name, places in source_names(model, tensor_files(source)).items():
        for stored, file in places:
            layout.setdefault(file.name, {})[stored] = name
    return dict(sorted(layout.items()))
