"""Small things that several rooms' tests need."""

import shutil
from pathlib import Path

from lmms.cli.demo.draw import draw_pictures
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.build_report import REPORT_NAME

DEMO_MODEL = Path(__file__).resolve().parents[2] / "cli" / "demo" / "model"

TOOL_TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}<|im_end|>\n{% endfor %}"
)
"""A chat template with a place for tools, which the tiny model's template lacks."""

VIDEO_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}"
    "<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
"""A chat template with a place for videos, which the tiny model's template lacks."""


def tiny_model_folder(parent: Path) -> Path:
    """A copy of the package's tiny Qwen3-VL type model folder (tokenizer, template, processor, config; no weights)."""
    folder = parent / "model"
    if not folder.exists():
        shutil.copytree(DEMO_MODEL, folder)
    return folder


def shard_files(folder: Path | str) -> dict[str, bytes]:
    """Name -> content of what is equal in equal builds: all files but the report, which has times."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.name != REPORT_NAME}


def small_shards(parent: Path, pictures: int = 40, seq_len: int = 256) -> Path:
    """A shard folder of drawn pictures with questions, and a few text-only conversations."""
    draw_pictures(parent, "pictures", pictures, 0)
    text = '{"messages": [{"role": "user", "content": "Say %d"}, {"role": "assistant", "content": "%d"}]}\n'
    (parent / "text.jsonl").write_text("".join(text % (i, i) for i in range(60)))
    sources = (str(parent / "pictures.jsonl"), str(parent / "text.jsonl"))
    model = str(tiny_model_folder(parent))
    build_shards(PrepConfig(sources=sources, model=model, seq_len=seq_len, out=str(parent / "shards"), workers=0))
    return parent / "shards"
