"""source -> record -> sample -> plan -> pack -> shard. Needs no GPU, no torch, no transformers."""

from typing import TYPE_CHECKING

from lmms.configs.lazy import lazy_names

if TYPE_CHECKING:
    from lmms.prep.build import Progress, build_shards
    from lmms.prep.plan import Plan, plan_packs
    from lmms.prep.records.record import Record
    from lmms.prep.reject import Reject
    from lmms.prep.render.render import Rendered, Renderer

__all__ = [
    "Plan",
    "Progress",
    "Record",
    "Reject",
    "Rendered",
    "Renderer",
    "build_shards",
    "plan_packs",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(("Progress", "build_shards"), "lmms.prep.build"),
        **dict.fromkeys(("Plan", "plan_packs"), "lmms.prep.plan"),
        "Record": "lmms.prep.records.record",
        "Reject": "lmms.prep.reject",
        **dict.fromkeys(("Rendered", "Renderer"), "lmms.prep.render.render"),
    },
)
