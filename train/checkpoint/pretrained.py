"""Pretrained weights, read tensor by tensor: each rank reads the rows that it owns and no others.

Names in old files (`visual.*`, `model.layers.*` of Qwen2-VL) become names of today's modules by transformers' table
(get_model_conversion_mapping), as in from_pretrained. A tensor that is missing, unexpected or of another shape is an
error: from_pretrained would start with random numbers in its place.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from lmms.configs.errors import ModelError
from lmms.train.families import family_of
from lmms.train.model.names import is_lora, own_parameters, parameter_name
from lmms.train.parallel.sharding import local_of

WEIGHTS_NAME, WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"

_OLD_BUFFERS = r"rotary_emb\.inv_freq$"
"""Buffers that old files store in every layer; today they are computed."""

_END = 2**20


def load_pretrained(model: PreTrainedModel, folder: Path) -> None:
    """Fill every parameter of a transformers model, plain or sharded over ranks, from a folder's safetensors files.

    LoRA's parameters are not in the files, and stay. The values get the type of the parameters. Raises ModelError with
    the first tensors that do not fit.
    """
    _read_weights(model, folder, with_values=True)


def check_pretrained(model: PreTrainedModel, folder: Path) -> None:
    """Raise the errors of load_pretrained for names and shapes, for a model on any device. No values are read."""
    _read_weights(model, folder, with_values=False)


def _read_weights(model: PreTrainedModel, folder: Path, *, with_values: bool) -> None:
    targets = {parameter_name(name): parameter for name, parameter in model.named_parameters() if not is_lora(name)}
    sources = source_names(model, tensor_files(folder))
    missing = sorted(targets.keys() - sources.keys())
    unexpected = sorted(stored for name in sources.keys() - targets.keys() for stored, _ in sources[name])
    faults = [f"{name} is missing" for name in missing] + [f"{name} is unexpected" for name in unexpected]
    by_file: dict[Path, list[tuple[str, nn.Parameter]]] = {}
    for name in sorted(targets.keys() & sources.keys()):
        for stored, file in sources[name]:
            by_file.setdefault(file, []).append((stored, targets[name]))
    filled: set[nn.Parameter] = set()
    for file, entries in sorted(by_file.items()):
        faults += _read_file(file, entries, filled, with_values)
    if faults:
        raise ModelError(
            f"{folder}: the weights do not fit {type(model).__name__}: {'; '.join(faults[:3])} ({len(faults)} in all);"
            " expected the weights of this config.json"
        )


def weights_digest(folder: Path) -> str:
    """Hash of the names, sizes and both ends (1 MiB each) of a folder's safetensors files.

    Other weights of the same model give another hash: the ends hold names, shapes and millions of numbers. ModelError
    for a folder without weights.
    """
    digest = xxhash.xxh3_64()
    for path in sorted(set(tensor_files(folder).values())):
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(f"{path.name} {size}\n".encode())
                for place in (0, max(size - _END, 0)):
                    file.seek(place)
                    digest.update(file.read(_END))
        except FileNotFoundError:
            raise ModelError(f"{path} is missing, but {WEIGHTS_INDEX_NAME} names it; copy the folder again") from None
    return digest.hexdigest()


def fill_rows(parameter: torch.Tensor, view: Any) -> None:
    """Fill this rank's rows of a parameter from safetensors' view of the whole tensor."""
    with torch.no_grad():
        local_of(parameter).copy_(view[local_rows(parameter)])


def differing(model: PreTrainedModel, folder: Path) -> list[str]:
    """The parameters of a plain model whose values differ from those of a folder, or are missing there."""
    targets, sources = dict(model.named_parameters()), source_names(model, tensor_files(folder))
    faults = sorted(targets.keys() ^ sources.keys())
    for name in sorted(targets.keys() & sources.keys()):
        for stored, path in sources[name]:
            with safe_open(path, framework="pt") as file:
                if not torch.equal(file.get_tensor(stored), targets[name]):
                    faults.append(name)
    return faults


def local_rows(parameter: torch.Tensor) -> slice:
    """The rows (dimension 0) that this rank owns. FSDP2 gives a rank ceil(rows / ranks) rows, the last ranks fewer."""
    if not isinstance(parameter, DTensor):
        return slice(0, parameter.shape[0])
    mesh = parameter.device_mesh
    rows, ranks = parameter.shape[0], mesh.size(mesh.ndim - 1)
    start = min(mesh.get_local_rank(mesh.ndim - 1) * -(-rows // ranks), rows)
    return slice(start, start + parameter.to_local().shape[0])


def tensor_files(folder: Path) -> dict[str, Path]:
    """Stored tensor name -> its file."""
    try:
        if (folder / WEIGHTS_INDEX_NAME).is_file():
            weight_map = json.loads((folder / WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))["weight_map"]
            if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
                raise TypeError("weight_map is not a table of file names")
            return {name: folder / file for name, file in weight_map.items()}
        with safe_open(folder / WEIGHTS_NAME, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / WEIGHTS_NAME)
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no {WEIGHTS_NAME} or {WEIGHTS_INDEX_NAME}; to start from random weights, set model.init:"
            " random"
        ) from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder}: its safetensors are damaged ({error}); copy the folder again") from error


def source_names(model: PreTrainedModel, files: Mapping[str, Path]) -> dict[str, list[tuple[str, Path]]]:
    """Parameter name -> (stored name, file); several where tied weights are stored under each of their names."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    state = {parameter_name(name): tensor for name, tensor in model.state_dict().items() if not is_lora(name)}
    tied, beside = own_parameters(model), family_of(model.config.model_type).beside
    sources: dict[str, list[tuple[str, Path]]] = {}
    for stored, file in sorted(files.items()):
        if stored.partition(".")[0] in beside:
            continue
        name, pattern = rename_source_key(stored, renamings, converters, model.base_model_prefix, state)
        if pattern is not None:
            raise ModelError(f"{file}: {stored} would have to be converted ({pattern}); save the model again first")
        if not re.search(_OLD_BUFFERS, name):
            sources.setdefault(tied.get(name, name), []).append((stored, file))
    return sources


def _read_file(
    file: Path, entries: Sequence[tuple[str, nn.Parameter]], filled: set[nn.Parameter], with_values: bool
) -> list[str]:
    """Fill the parameters whose tensors are in this file; compare those that were filled before. Returns faults."""
    faults = []
    try:
        with safe_open(file, framework="pt") as tensors, torch.no_grad():
            for stored, parameter in entries:
                view, rows = tensors.get_slice(stored), local_of(parameter)
                if view.get_shape() != list(parameter.shape):
                    faults.append(f"{stored} has shape {view.get_shape()}, expected {list(parameter.shape)}")
                elif not with_values:
                    continue
                elif parameter not in filled:
                    rows.copy_(view[local_rows(parameter)])
                    filled.add(parameter)
                elif not torch.equal(rows, view[local_rows(parameter)].to(rows)):
                    faults.append(f"{stored} differs from the weight that config.json ties it to")
    except FileNotFoundError:
        raise ModelError(f"{file} is missing, but {WEIGHTS_INDEX_NAME} names it; copy the folder again") from None
    except SafetensorError as error:
        raise ModelError(f"{file} is damaged ({error}); copy the folder again") from error
    return faults
