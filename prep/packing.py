"""Samples, all of them spooled -> packs, planned and written: the second pass of a build."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.check import PackLimits
from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.pack import SAMPLE_TABLE
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.engine.cluster import Call, tasks_on_ray
from lmms.prep.engine.memory import hold_to_share, shares_of
from lmms.prep.engine.processes import map_ordered
from lmms.prep.engine.room import folder_bytes, room_for
from lmms.prep.engine.spooled import read_pack
from lmms.prep.output import Output
from lmms.prep.planning.balanced import balanced_packs
from lmms.prep.planning.spread import Samples
from lmms.prep.planning.tight import Plan, plan_packs
from lmms.prep.progress import Progress, Report
from lmms.prep.shards import WrittenShard, cut_shards, write_shard

_PLACE = ["chunk", "offset", "copy"]


def planned_and_written(
    config: PrepConfig,
    samples: npt.NDArray[np.void],
    limits: PackLimits,
    cost: ModelCost | None,
    spool: Path,
    out: Output,
    report: Report,
) -> tuple[list[WrittenShard], Mapping[str, npt.NDArray[np.int64]]]:
    """The shards of some samples, and the columns of samples.parquet. cost: None for a tight plan."""
    is_sample = samples["tokens"] > 0
    report(Progress("planning", 0, 1, len(samples), 0, 0))
    plan = _plan(config, samples[is_sample], limits, cost)
    report(Progress("planning", 1, 1, len(samples), 0, 0))
    return _write(config, samples[is_sample], plan, limits, spool, out, report), _samples(samples, is_sample, plan)


def _plan(config: PrepConfig, samples: npt.NDArray[np.void], limits: PackLimits, cost: ModelCost | None) -> Plan:
    """The packs. Samples of one size are placed in order, so the copies of a record come after all first copies."""
    by_copy = np.argsort(samples["copy"], kind="stable")
    tokens, patches = samples["tokens"][by_copy], tower_positions(samples)[by_copy]
    size = (limits.seq_len, limits.max_patches)
    if cost is None:
        plan = plan_packs(tokens, patches, *size, config.seed)
    else:
        costs = costs_beyond_tokens(cost, samples)[by_copy]
        plan = balanced_packs(Samples(tokens, patches, costs), *size, config.seed, config.more_packs)
    pack_of = np.empty_like(plan.pack_of)
    pack_of[by_copy] = plan.pack_of
    return replace(plan, pack_of=pack_of, order=np.argsort(pack_of, kind="stable"))


def tower_positions(samples: npt.NDArray[np.void]) -> npt.NDArray[np.int32]:
    """int32 [samples]: patches and positions of sounds, which max_patches limits."""
    positions: npt.NDArray[np.int32] = samples["patches"] + samples["sound_positions"]
    return positions


def costs_beyond_tokens(cost: ModelCost, samples: npt.NDArray[np.void]) -> npt.NDArray[np.int32]:
    """int32 [samples]: what each costs beyond its tokens, in units of the cost of a token.

    samples: entries of a ledger. As in the costs of packs that the order of a run depends on, windows at the edges of
    images count as whole windows.
    """
    costs = float(cost.target) * samples["target_tokens"].astype(np.float64)
    costs += cost.squared_length * samples["tokens"].astype(np.float64) ** 2
    costs += (cost.patch + cost.squared_window * cost.window**2) * samples["patches"]
    costs += cost.squared_image * samples["squared_patches"]
    costs += cost.sound_position * samples["sound_positions"] + cost.squared_sound * samples["squared_sounds"]
    return np.rint(costs / cost.token).clip(max=2**31 - 1).astype(np.int32)


def _write_task(
    spool: Path, out: Output, limits: PackLimits, task: tuple[int, list[npt.NDArray[np.void]]]
) -> WrittenShard:
    shard, packs = task
    return write_shard(shard, (read_pack(spool, entries) for entries in packs), out, limits)


def _writers(workers: int, shards: int) -> int:
    """Processes that write: a process alone would not make up for its start, and no library can crash here."""
    processes = min(workers, shards)
    return processes if processes > 1 else 0


def _nothing() -> None:
    """Shards need no set-up in their worker."""


def _write(
    config: PrepConfig,
    samples: npt.NDArray[np.void],
    plan: Plan,
    limits: PackLimits,
    spool: Path,
    out: Output,
    report: Report,
) -> list[WrittenShard]:
    packs = np.split(samples[plan.order], plan.starts[1:-1])
    tasks = list(enumerate(cut_shards(packs, lambda entries: int(entries["bytes"].sum()), config.shard_bytes)))
    written, done = [], 0
    report(Progress("writing", 0, plan.num_packs, len(samples), int(samples["tokens"].sum()), 0))
    task = partial(_write_task, spool, out, limits)
    if config.engine == "ray":
        results = tasks_on_ray(Call(task, _nothing, (spool, out.folder)), tasks, "shard {} to write".format)
    else:
        name_of = "shard {0[0]} to write".format
        shares = shares_of(config.memory, config.workers)
        writers = _writers(shares.workers, len(tasks))
        setup = partial(hold_to_share, shares.process if writers else None)  # this process is the caller's
        results = map_ordered(task, tasks, writers, setup, name_of)
    with room_for(out.folder, lambda: 2 * folder_bytes(spool)), closing(results):
        for shard in results:
            written.append(shard)
            done += shard.file.samples
            report(Progress("writing", done, plan.num_packs, len(samples), int(samples["tokens"].sum()), 0))
    return written


def _samples(
    samples: npt.NDArray[np.void], is_sample: npt.NDArray[np.bool_], plan: Plan
) -> dict[str, npt.NDArray[np.int64]]:
    """The columns of samples.parquet. is_sample: bool [samples], false for joined rows."""
    count = int(is_sample.sum())
    segment = np.empty(count, np.int64)
    segment[plan.order] = np.arange(count) - np.repeat(plan.starts[:-1], np.diff(plan.starts))
    sample_of = np.cumsum(is_sample) - 1
    sample_of[~is_sample] = _sample_of_joined(samples[is_sample], samples[~is_sample])
    placed = {"pack": plan.pack_of[sample_of], "segment": segment[sample_of]}
    return {name: placed[name] if name in placed else np.ascontiguousarray(samples[name]) for name in SAMPLE_TABLE}


def _sample_of_joined(samples: npt.NDArray[np.void], joined: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """The number of the sample of each row that was joined to one: that with the same place in the spool."""
    places = {tuple(place): number for number, place in enumerate(samples[_PLACE].tolist())} if len(joined) else {}
    return np.array([places[tuple(place)] for place in joined[_PLACE].tolist()], np.int64)
