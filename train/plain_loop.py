"""Packs and a model for a plain torch loop on one process: no run, no output folder, the same order as `lmms train`.

docs/loops.md has an example.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from lmms.configs.contract.manifest import Dataset, open_dataset
from lmms.configs.contract.model_folder import TRAIN_FILES, resolve_model
from lmms.configs.errors import ConfigError, TrainError
from lmms.configs.ranges import MOST_SECONDS
from lmms.configs.settings.data import DataConfig
from lmms.configs.settings.kernels import KernelsConfig
from lmms.configs.settings.train import ModelConfig, TrainConfig
from lmms.train.batch.batch import Batch
from lmms.train.batch.loader import batches
from lmms.train.checkpoint.pretrained import load_pretrained
from lmms.train.checkpoint.resume import resumed_state
from lmms.train.checkpoint.state import state_from_dict, state_to_dict
from lmms.train.data.phases import order_of
from lmms.train.data.shards import PackReader
from lmms.train.data.steps import Progress, RankShare, plan_steps
from lmms.train.model.build import keep_in, materialize
from lmms.train.model.folder import model_of
from lmms.train.model.forward import TrainModel
from lmms.train.model.kernels import choose_kernels, this_machine, use_kernels
from lmms.train.plan.open import open_run

_STALL_S = 1800.0
"""The fewest seconds without a batch after which a loader process is given up."""


def open_shards(where: str | Path) -> Dataset:
    """A complete shard folder, or its URL. DatasetError where a file is missing or not as the manifest says."""
    return open_dataset(where)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Step:
    """What one optimizer step trains on."""

    number: int
    """Steps count from 1."""
    batches: list[Batch]
    """A batch for each forward pass, on the CPU; `batch.to("cuda")` moves a batch."""
    weight: float
    """The sum of the step's target weights: what the summed losses are divided by."""
    tokens: int


class PackDataset(IterableDataset[Step]):
    """The steps of a run over shards, without end, in the order that `lmms train` would take on one rank.

    The state is a position: `state_dict` after a step says where the next step begins, and `load_state_dict` refuses
    shards, seeds and step sizes that differ from those of the state.
    """

    def __init__(self, data: DataConfig, model: str | Path, seed: int = 0) -> None:
        """data: the shards or the mixture, and data.global_packs, micro_packs, workers, on_bad_media.

        model: folder or hub id, with the tokenizer, template and processor of the shards; weights are not needed.
        """
        # Nothing is written to the output. A store that fails is waited for as long as data.retry_s says.
        stall_s = min(max(_STALL_S, 2 * data.retry_s), MOST_SECONDS)
        config = TrainConfig(
            model=ModelConfig(path=str(model), init="random"),
            data=data,
            output=".",
            max_steps=1,
            seed=seed,
            stall_s=stall_s,
        )
        self._config = config
        self._opened = open_run(config, lambda coming: None)
        self._state = self._opened.fresh

    def __iter__(self) -> Iterator[Step]:
        """The steps after the position. Closing the iterator ends the loader processes (data.workers)."""
        if get_worker_info() is not None:
            raise ConfigError(
                "a PackDataset is in a worker of torch's DataLoader, which cannot keep its position; give DataLoader"
                " num_workers=0 and set data.workers"
            )
        sets, data = self._opened.sets, self._config.data
        order = order_of(sets, self._opened.phase)
        share, done = RankShare(micro_packs=data.micro_packs), Progress(self._state.step, self._state.position)
        plans, coming = tee(plan_steps(order, sets, share, done))
        requests = (request for plan in coming for request in plan.passes)
        reader = PackReader(sets.datasets)
        with closing(batches(reader, self._opened.recipe, requests, data.workers, self._config.stall_s)) as loader:
            for plan in plans:
                passes = [next(loader) for _ in plan.passes]
                self._state = replace(self._state, step=plan.step, position=plan.position + len(plan.packs))
                yield Step(number=plan.step, batches=passes, weight=plan.weight, tokens=plan.tokens)

    def state_dict(self) -> dict[str, Any]:
        """The position at which the next step begins, and what the order was made of."""
        return state_to_dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the step at which `state_dict` was called, from the next `iter` on.

        TrainError where other packs would come next, with what differs.
        """
        try:
            stored = state_from_dict(state)
        except (TypeError, LookupError, AttributeError) as error:
            raise TrainError(
                f"the state is not one of a PackDataset ({error}); pass what state_dict returned"
            ) from None
        try:
            self._state = resumed_state(self._opened.fresh, stored, Path("the state"), ())
        except TrainError as error:
            # A PackDataset has no resume_changes and no output folder.
            said = str(error).partition("; ")[0]
            raise TrainError(f"{said}; make the PackDataset with the settings of the state") from None


def load_model(path: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> TrainModel:
    """A pretrained model for a loop of one process, with the kernels of this machine.

    path: folder or hub id. The model takes a Batch of the same device and returns its summed loss, see
    TrainModel.forward. ModelError for a folder that holds no such model, or weights that do not fit.
    """
    folder = resolve_model(str(path), TRAIN_FILES)
    model = model_of(folder, "none")
    place = torch.device(device)
    use_kernels(model, choose_kernels(KernelsConfig(liger="off"), this_machine(place, dtype)))
    # Before there are values: buffers, such as rotary frequencies, stay fp32.
    keep_in(model, dtype, masters=())
    materialize(model, place)
    load_pretrained(model.hf, folder)
    return model
