"""The template and the tokenizer of a model, loaded."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmms.configs.contract.families import family_facts
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.errors import ModelError
from lmms.prep.records.record import ROLES
from lmms.prep.render.families import FAMILIES
from lmms.prep.render.families.family import Family
from lmms.prep.render.gaps import Gaps
from lmms.prep.render.template import ChatTemplate, compile_template
from lmms.prep.render.tokens import Encoder, encode_texts, load_encoder

_SMALL, _NOT_WANTED = "the sources are small", "fast is false"


@dataclass(frozen=True, slots=True)
class Renderer:
    """The template and tokenizer of one model, loaded."""

    family: Family
    image: str | None
    """The special token that stands for an image; None for models that read text only."""
    video: str | None
    """The special token that stands for a video; None for models that read none."""
    audio: str | None
    """The special token that stands for a sound; None for models that hear nothing."""
    template: ChatTemplate
    special_tokens: dict[str, str]
    encoder: Encoder
    headers: Mapping[str, tuple[int, ...]]
    """The begin of a turn, such as `user` and a line feed -> its ids, where no token reaches into what follows."""
    control_ids: dict[str, int]
    """Special tokens that the rendering may hold -> id."""
    control: re.Pattern[str]
    control_prefix: str
    """What all special tokens begin with."""
    outlines: dict[Any, Any] | None
    """The outlines of shapes so far, see outline.py; None: the template renders every record."""
    gaps: Gaps = field(default_factory=dict)
    """What the template wrote between texts so far, see gaps.py."""

    @property
    def kinds(self) -> dict[str, str]:
        """Placeholder -> kind of media."""
        tokens = (("image", self.image), ("video", self.video), ("audio", self.audio))
        return {token: kind for kind, token in tokens if token}


def load_renderer(folder: ModelFolder, fast: bool = False, is_large: bool = True) -> Renderer:
    """Compile the template and load the tokenizer of a model folder.

    fast: use what gives the same in less time; is_large: also what takes a second to load.
    """
    encoder = load_encoder(folder.tokenizer_json, "" if fast and is_large else _SMALL if fast else _NOT_WANTED)
    control_ids = {}
    for token_id, token in encoder.exact.get_added_tokens_decoder().items():
        if token.special:
            if token.lstrip or token.rstrip or token.single_word:
                raise ModelError(f"{folder.tokenizer_json}: special token {token.content!r} strips its surroundings")
            control_ids[token.content] = token_id
    family, facts = FAMILIES[folder.family], family_facts(folder.family, folder.path)
    tokens = (family.turn_start, family.turn_end, family.text_end, *(family.image_around or ()))
    missing = [token for token in tokens if token not in control_ids]
    if missing:
        raise ModelError(
            f"{folder.tokenizer_json} lacks the special tokens {', '.join(missing)}, expected those of {folder.family}"
        )
    control = re.compile("(" + "|".join(re.escape(t) for t in sorted(control_ids, key=len, reverse=True)) + ")")
    return Renderer(
        family=family,
        image=facts.placeholders.get("image"),
        video=facts.placeholders.get("video") if folder.video_token_id is not None else None,
        audio=facts.placeholders.get("audio"),
        template=compile_template(folder.chat_template),
        special_tokens=dict(folder.special_tokens),
        encoder=encoder,
        headers={header: tuple(_ids(encoder, header)) for header in (f"{role}\n" for role in ROLES)},
        control_ids=control_ids,
        control=control,
        control_prefix=os.path.commonprefix(list(control_ids)),
        outlines={} if fast and _sha256(folder.chat_template) in family.plain_templates else None,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _ids(encoder: Encoder, text: str) -> list[int]:
    ids: list[int] = encode_texts(encoder, [text]).ids.tolist()
    return ids
