"""Qwen2-Audio and the thinker of Qwen2.5-Omni: as the vision models, with other placeholders, and with sounds, e.g.

{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What do you hear?"}]}
"""

from dataclasses import replace
from functools import partial

from lmms.prep.render.families import vision

AUDIO = replace(vision.FAMILY, plain_templates={}, image_around=None, clip=None)

FAMILY = replace(
    vision.FAMILY,
    plain_templates={},
    coords="absolute",
    image_around=("<|vision_bos|>", "<|vision_eos|>"),
    clip=partial(vision.rows_together, video="<|VIDEO|>"),
)
