"""How even and how full packs are: our two plans and the packers of others, on the samples of shard folders.

    python -m tools.bench.plans DIR [--seq-lens 4096 16384]   # a folder of `lmms prep build-shards`, of any plan
    python -m tools.bench.plans --speed [SAMPLES]             # CPU time and peak memory of both plans; default 10 M.
                                                              # The rules of others, in Python, on a tenth of them

Samples longer than a pack are left out. Costs are those of the folder's model, trained in full. Waiting is what
`lmms train` would lose, see docs/order.md: with one pack a pass and group_packs 1, the packs repeated to fill a window.
Mix is the variance of a pack's tokens of each source (and of a step of 64 packs), over that of samples drawn at random.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.costs import folder_cost
from lmms.configs.contract.hashing import counter_hash, permutation
from lmms.configs.contract.manifest import open_dataset
from lmms.configs.contract.model_folder import PREP_FILES, resolve_model
from lmms.configs.contract.pack import Pack
from lmms.prep.packing import costs_beyond_tokens, tower_positions
from lmms.prep.planning.balanced import balanced_packs
from lmms.prep.planning.spread import Samples
from lmms.prep.planning.tight import plan_packs
from lmms.train.data.balance import expected_loss, packs_of_steps
from lmms.train.data.mixture import Phase
from lmms.train.data.order import Order, SetOrder
from lmms.train.data.shards import PackReader, read_sidecar
from tools.bench.peers.packers import PACKERS

RANKS, PACKS_A_RANK, STEP = (8, 64, 512), (1, 4, 8), 64
TWICE = (64, 4)
"""Ranks and packs a rank for which ranks also wait after the vision tower."""
_COUNTS = ("tokens", "target_tokens", "patches", "squared_patches", "sound_positions", "squared_sounds")
KIND = np.dtype([(name, "i8") for name in (*_COUNTS, "source", "row")])
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Set:
    """The samples of a folder, and what they cost."""

    samples: npt.NDArray[np.void]
    costs: npt.NDArray[np.int32]
    """Beyond the tokens, in tokens."""
    of_tower: Floats
    """The vision tower's part, in tokens."""

    def most(self, seq_len: int) -> "Set":
        """The samples of at most so many tokens."""
        which = self.samples["tokens"] <= seq_len
        return Set(self.samples[which], self.costs[which], self.of_tower[which])


def main() -> None:
    """Print the tables of a folder, or the figures of speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="a shard folder")
    parser.add_argument("--seq-lens", type=int, nargs="+", default=[4096, 16_384])
    parser.add_argument("--speed", type=int, nargs="?", const=10_000_000, metavar="SAMPLES")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_speed(given.one[0], float(given.one[1]), given.speed)))
    elif given.speed:
        _print_speed(given.speed)
    elif given.folder:
        whole = read_set(Path(given.folder))
        for seq_len in given.seq_lens:
            print("\n".join(_table(whole.most(seq_len), seq_len)), flush=True)
    else:
        parser.error("name a shard folder, or --speed")


def read_set(folder: Path) -> Set:
    """The samples of a shard folder, in reading order."""
    dataset = open_dataset(folder)
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    samples = np.concatenate([_samples_of(reader.read(sidecar.place(pack))) for pack in range(len(sidecar))])
    samples = samples[np.lexsort((samples["row"], samples["source"]))]
    cost = folder_cost(resolve_model(dataset.manifest.model, PREP_FILES), {})
    tower = (cost.patch + cost.squared_window * cost.window**2) * samples["patches"]
    tower += cost.squared_image * samples["squared_patches"]
    tower += cost.sound_position * samples["sound_positions"] + cost.squared_sound * samples["squared_sounds"]
    return Set(samples, costs_beyond_tokens(cost, samples), tower / cost.token)


def _samples_of(pack: Pack) -> npt.NDArray[np.void]:
    samples = np.zeros(len(pack.lengths), KIND)
    samples["tokens"] = pack.lengths
    samples["source"], samples["row"] = pack.samples.T
    at = np.searchsorted(pack.cu_seqlens, pack.targets[:, 0], side="right") - 1
    np.add.at(samples["target_tokens"], at, np.diff(pack.targets)[:, 0])
    for media in pack.media:
        segment = pack.segment_of(media.start)
        if media.sound:
            samples["sound_positions"][segment] += sum(media.sound.chunks)
            samples["squared_sounds"][segment] += sum(chunk**2 for chunk in media.sound.chunks)
            continue
        t, h, w = media.grid_thw
        samples["patches"][segment] += t * h * w
        samples["squared_patches"][segment] += t * (h * w) ** 2
    return samples


def _table(data: Set, seq_len: int) -> Iterator[str]:
    tokens = data.samples["tokens"]
    share = data.of_tower.sum() / (tokens.sum() + data.costs.sum())
    sizes = f"{len(tokens):,} samples, {tokens.sum():,} tokens, packs of {seq_len:,}"
    yield f"\n{sizes}; the tower is {share:.1%} of all costs\n"
    scales = [f"{world} x {packs}" for world in RANKS for packs in PACKS_A_RANK] + ["64 x 4, in two waits"]
    yield f"| plan | CPU-s | packs | fill | cost of a pack | deviation | mix: pack, step | {' | '.join(scales)} |"
    yield "|" + "---|" * (7 + len(scales))
    for name, plan in _plans(data, seq_len).items():
        start = time.process_time()
        pack_of = plan()
        yield _row(name, time.process_time() - start, pack_of, data, seq_len)
    best = _best_possible(data, seq_len)
    waits = _waits(np.stack([best, best * 0]))[:-1]
    yield f"| nothing but samples above the mean pack | | | | | | | {' | '.join(waits)} | |"


def _plans(data: Set, seq_len: int) -> dict[str, Callable[[], Ints]]:
    tokens, patches = data.samples["tokens"].astype(np.int32), tower_positions(data.samples).astype(np.int32)
    size, samples = (seq_len, 4 * seq_len), Samples(tokens, patches, data.costs)
    shuffled = permutation(len(tokens), 1)

    def of_peer(packer: Callable[[Ints, int], Ints]) -> Ints:
        pack_of = np.empty(len(tokens), np.int64)
        pack_of[shuffled] = packer(tokens[shuffled].astype(np.int64), seq_len)
        return pack_of

    ours = {
        "tight": lambda: plan_packs(tokens, patches, *size, 0).pack_of,
        "balanced": lambda: balanced_packs(samples, *size, 0).pack_of,
        "balanced, 2 % more": lambda: balanced_packs(samples, *size, 0, 0.02).pack_of,
    }
    return ours | {name: lambda packer=packer: of_peer(packer) for name, packer in PACKERS.items()}


def _row(name: str, seconds: float, pack_of: Ints, data: Set, seq_len: int) -> str:
    tokens = data.samples["tokens"]
    number = int(pack_of.max()) + 1
    tower = np.bincount(pack_of, weights=data.of_tower, minlength=number)
    total = np.bincount(pack_of, weights=tokens + data.costs, minlength=number)
    fill, mean = tokens.sum() / number / seq_len, total.mean()
    assert np.bincount(pack_of, weights=tokens).max() <= seq_len
    cost = f"{total.min() / mean:.2f} to {total.max() / mean:.2f}"
    order = _order(np.stack([total - tower, tower]))
    steps = packs_of_steps(order, 0, max(number // STEP, 2)) if number >= 2 * STEP else None
    mixes = ", ".join(f"{mix:.2f}" for mix in _mixes(pack_of, data.samples, number, steps))
    waits = " | ".join(_waits(np.stack([total - tower, tower])))
    sizes = f"{seconds:.2f} | {number:,} | {fill:.2%} | {cost} | {total.std() / mean:.3f}"
    return f"| {name} | {sizes} | {mixes} | {waits} |"


def _order(costs: Floats) -> Order:
    whole = np.rint(costs * 1024).astype(np.int64).sum(axis=0)
    order = SetOrder(shard_packs=np.array([len(whole)]), costs=whole, seed=0, name="plans")
    return Order(sets=(order,), phase=Phase(), costs=whole, global_packs=STEP)


def _waits(costs: Floats) -> list[str]:
    order, both = _order(costs), np.rint(costs * 1024).astype(np.int64)
    losses = [expected_loss(order, both, world, packs, 1) for world in RANKS for packs in PACKS_A_RANK]
    twice = expected_loss(order, both, *TWICE, 1).ordered_twice
    return [*(f"{loss.ordered:.1%}" for loss in losses), f"{twice:.1%}"]


def _best_possible(data: Set, seq_len: int) -> Floats:
    """Costs of packs if all were equal but those that hold one sample which costs more than the mean pack."""
    costs = (data.samples["tokens"] + data.costs).astype(np.float64)
    fewest = -(-int(data.samples["tokens"].sum()) // seq_len)
    number = fewest + fewest // 100
    dear = costs[costs > costs.sum() / number]
    return np.concatenate([dear, np.full(number - len(dear), (costs.sum() - dear.sum()) / (number - len(dear)))])


def _mixes(pack_of: Ints, samples: npt.NDArray[np.void], number: int, steps: Ints | None) -> list[float]:
    """Variance over packs, and over steps, of each source's tokens, in units of that of samples drawn at random."""
    sources = np.unique(samples["source"], return_inverse=True)[1]
    table = np.zeros((number, sources.max() + 1))
    np.add.at(table, (pack_of, sources), samples["tokens"])
    at_random = (samples["tokens"].astype(np.float64) ** 2).sum() / number
    mixes = [table.var(axis=0).sum() / at_random]
    return mixes if steps is None else [*mixes, table[steps].sum(axis=1).var(axis=0).sum() / at_random / STEP]


def _print_speed(samples: int) -> None:
    print("| plan | samples | with media | CPU-s | peak memory | packs | fill |\n|---|--:|--:|--:|--:|--:|--:|")
    ours = [(plan, share, samples) for plan in ("tight", "balanced") for share in (0.0, 0.05)]
    for plan, share, number in [*ours, *((peer, 0.0, samples // 10) for peer in PACKERS)]:
        words = [sys.executable, "-m", "tools.bench.plans", "--speed", str(number), "--one", plan, str(share)]
        figures = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        cells = f"{figures['cpu_s']:.2f} | {figures['peak_mb']:.0f} MB | {figures['packs']:,} | {figures['fill']:.3%}"
        print(f"| {plan} | {number:,} | {share:.0%} | {cells} |", flush=True)


def _speed(plan: str, share: float, number: int) -> dict[str, float]:
    """The figures of one plan, made in this process: lengths with a long tail, a share of them with pictures."""
    seq_len = 16_384
    tokens, patches = (np.empty(number, np.int32) for _ in range(2))
    costs = np.empty(number if plan == "balanced" else 0, np.int32)
    for start in range(0, number, 2**18):
        part = slice(start, min(start + 2**18, number))
        draws = counter_hash(4 * (part.stop - part.start), start + 1).reshape(4, -1) / 2.0**64
        normal = np.sqrt(-2 * np.log(1 - draws[0])) * np.cos(2 * np.pi * draws[1])
        tokens[part] = np.minimum(np.exp(6.8 + 1.1 * normal) + 1, seq_len)
        patches[part] = (draws[2] < share) * (np.minimum(4096 * draws[3], 3 * tokens[part]) // 4 * 4)
        if plan == "balanced":
            costs[part] = 41e-6 * tokens[part].astype(np.float64) ** 2 + 0.07 * tokens[part] + 0.7 * patches[part]
    size, start_s = (seq_len, 4 * seq_len), time.process_time()
    if plan == "tight":
        packs = plan_packs(tokens, patches, *size, 0).num_packs
    elif plan == "balanced":
        packs = balanced_packs(Samples(tokens, patches, costs), *size, 0).num_packs
    else:
        packs = int(PACKERS[plan](tokens.astype(np.int64), seq_len).max()) + 1
    return {
        "cpu_s": time.process_time() - start_s,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "packs": packs,
        "fill": float(tokens.sum(dtype=np.int64)) / packs / seq_len,
    }


if __name__ == "__main__":
    main()
