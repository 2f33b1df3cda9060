"""What `lmms train --dry-run` says of a rung's memory, to be held against what is measured."""

from collections.abc import Iterator

from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig
from lmms.train.plan.dry_run import dry_run
from tools.gpu.rungs import rung_of
from tools.gpu.sizes import Sizes
from tools.gpu.training import settings_of


def predict(model: str, packs: str, rungs: list[str], folder: str, sizes: Sizes) -> Iterator[dict[str, dict[str, int]]]:
    """Rung -> bytes by component at the peak (lmms.train.plan.memory, COMPONENTS), one rank; the list grows.

    Rungs whose settings differ in kernels alone need the same by this arithmetic, and are computed once.
    """
    found = dict[str, dict[str, int]]()
    known = dict[str, dict[str, int]]()
    for name in rungs:
        settings = settings_of(model, packs, rung_of(name), folder, f"{folder}/never", sizes)
        key = str(sorted((k, str(v)) for k, v in settings.items() if not k.startswith("kernels.")))
        if key not in known:
            known[key] = dry_run(load_config(TrainConfig, None, values=settings), 1, []).memory[0]
        found[name] = known[key]
        yield found
