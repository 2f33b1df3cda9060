"""Records of every kind that a build has to deal with."""

import json
from pathlib import Path
from typing import Any

from PIL import Image


def write_records(folder: Path, number: int = 300) -> Path:
    """Records of many lengths, every third with a picture, one in fifty broken, one blank line."""
    folder.mkdir()
    for i in range(5):
        Image.effect_noise((40 + 30 * i, 64), 50).save(folder / f"{i}.png")
    lines = []
    for i in range(number):
        content: Any = "word " * (i % 37)
        if i % 3 == 0:
            content = [{"type": "image", "image": f"{i % 5}.png"}, {"type": "text", "text": content}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": f"answer {i}" * (i % 7)}]
        lines.append(json.dumps({"messages": messages}) if i % 50 != 7 else "{")
    path = folder / "records.jsonl"
    path.write_text("\n".join([*lines[:10], "", *lines[10:]]) + "\n")
    return path
