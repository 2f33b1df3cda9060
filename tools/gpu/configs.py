"""The config of the model to train: whole, or cut down to what a machine without a GPU can train."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

_LAYERS = 2
_THIN_TEXT = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1}
_THIN_TOWER = {"intermediate_size": 256, "num_heads": 2, "out_hidden_size": _THIN_TEXT["hidden_size"]}


def read_config(folder: Path, thin: bool) -> PretrainedConfig:
    """The model's config. thin: the same heads, windows, tokens and deep features in two narrow layers of each kind."""
    if not thin:
        return AutoConfig.from_pretrained(folder)
    body: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    body.get("text_config", body).update(_THIN_TEXT, num_hidden_layers=_LAYERS)
    tower = body["vision_config"]
    head = tower["hidden_size"] // tower["num_heads"]
    tower.update(_THIN_TOWER, depth=_LAYERS, hidden_size=head * _THIN_TOWER["num_heads"])
    for name, blocks in (("fullatt_block_indexes", [_LAYERS - 1]), ("deepstack_visual_indexes", [0])):
        if name in tower:
            tower[name] = blocks
    return AutoConfig.for_model(**body)
