"""source -> record -> sample -> plan -> pack -> shard. Needs no GPU, no torch, no transformers."""

from typing import TYPE_CHECKING

from lmms.configs.lazy import lazy_names

if TYPE_CHECKING:
    from lmms.prep.build import build_shards
    from lmms.prep.first_records import read_records
    from lmms.prep.planning.tight import Plan, plan_packs
    from lmms.prep.progress import Progress
    from lmms.prep.records.record import Record
    from lmms.prep.reject import Reject
    from lmms.prep.render.render import Rendered, render_record
    from lmms.prep.render.renderer import Renderer, load_renderer
    from lmms.prep.sources import Source
    from lmms.prep.writer import PackFacts, write_packs

__all__ = [
    "PackFacts",
    "Plan",
    "Progress",
    "Record",
    "Reject",
    "Rendered",
    "Renderer",
    "Source",
    "build_shards",
    "load_renderer",
    "plan_packs",
    "read_records",
    "render_record",
    "write_packs",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Progress": "lmms.prep.progress",
        "build_shards": "lmms.prep.build",
        **dict.fromkeys(("Plan", "plan_packs"), "lmms.prep.planning.tight"),
        "Record": "lmms.prep.records.record",
        "Reject": "lmms.prep.reject",
        **dict.fromkeys(("Rendered", "render_record"), "lmms.prep.render.render"),
        **dict.fromkeys(("Renderer", "load_renderer"), "lmms.prep.render.renderer"),
        "Source": "lmms.prep.sources",
        "read_records": "lmms.prep.first_records",
        **dict.fromkeys(("PackFacts", "write_packs"), "lmms.prep.writer"),
    },
)
