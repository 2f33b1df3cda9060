"""Texts -> token ids, many texts at once; and which token is behind a character of a text.

Two tokenizers give the same ids: that of the package tokenizers, which the model was published with, and that of the
package fastokens, which takes a thirtieth of the time (docs/figures.md). The second is used only where its ids are
equal: on a list of hard texts when it is loaded, and on about every two-hundredth text of a build.
"""

import os
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from lmms.configs.errors import BuildError, ModelError

_CHECKED = 211
"""A text is tokenized by both tokenizers when its length is a multiple of this: about one text in two hundred."""

_HARD = (
    *(
        "",
        " ",
        "\n",
        "\n\n\n",
        " \n \t\r\n",
        "a",
        "Hello, World!  It's 12345.67%\n\n  x",
        "don't I'LL we'Ve",
        "a" * 300,
    ),
    *("e\u0301 \u212b \u1100\u1161", "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u0939\u093f\u0928\u094d\u0926\u0940"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "\ufeff\u200b\u00a0\u3000x", "\x00\x01\x7f"),
    *(
        "<|im_start|>user\nHi<|im_end|>",
        "<think>\nx\n</think>\n\n",
        '<tool_call>\n{"a": 1}\n</tool_call>',
        "<|",
        "\ufdd0",
    ),
    *(
        "def f(x):\n    return x  # \u2202y/\u2202x\n\n\n\tend",
        "1 22 333 4444 55555 \u0661\u0662\u0663",
        "\u0395\u03bb ABC\u0394",
    ),
)


@dataclass(frozen=True, slots=True)
class Encoder:
    """The tokenizer of a model. Special tokens in a text are text."""

    exact: Tokenizer
    fast: Any
    """The same tokenizer of the package fastokens; None: not used."""
    added: Mapping[int, str]
    """Tokens that stand for their name: number -> name. Of every other token each character stands for one byte."""
    why_exact: str
    """Why the fast tokenizer is not used; "" where it is."""

    @property
    def name(self) -> str:
        """The package that tokenizes, for a report."""
        return f"tokenizers, since {self.why_exact}" if self.why_exact else "fastokens"

    @property
    def is_byte_level(self) -> bool:
        """Whether the length of a token in bytes is known from its name."""
        return isinstance(self.exact.decoder, ByteLevel)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of several texts, one after the other."""

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    """int64 [texts + 1]: where each text begins, and the end of the last."""


def load_encoder(tokenizer_json: Path, why_exact: str = "") -> Encoder:
    """The tokenizer of this file. why_exact: why not to load the fast one, which takes a second. Raises ModelError."""
    try:
        exact = Tokenizer.from_file(str(tokenizer_json))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ModelError(f"{tokenizer_json} is not a tokenizer that can be loaded: {error}") from error
    exact.encode_special_tokens = True
    added = {number: token.content for number, token in exact.get_added_tokens_decoder().items()}
    fast, why_exact = (None, why_exact) if why_exact else _load_fast(tokenizer_json, exact)
    return Encoder(exact, fast, added, why_exact)


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> Tokens:
    """The ids of each text. BuildError where the two tokenizers differ."""
    if not encoder.fast:
        return _encoded_exactly(encoder.exact, texts)
    tokens = _encoded_fast(encoder.fast, texts)
    checked = [i for i, text in enumerate(texts) if text and not len(text) % _CHECKED]
    expected = _encoded_exactly(encoder.exact, [texts[i] for i in checked])
    for number, i in enumerate(checked):
        if not np.array_equal(_ids_of(tokens, i), _ids_of(expected, number)):
            text = texts[i] if len(texts[i]) <= 60 else f"{texts[i][:57]}..."
            raise BuildError(
                f"the package fastokens gives other ids than the model's tokenizer for {text!r}; "
                "set fast=false, and report this: it is a bug"
            )
    return tokens


def tokens_behind(encoder: Encoder, text: str, ids: npt.NDArray[np.int32], characters: Sequence[int]) -> list[int]:
    """For each of these places in a text the first token that ends behind the place. ids: those of the text."""
    if not encoder.is_byte_level or not unicodedata.is_normalized("NFC", text):
        ends = [end for _, end in encoder.exact.encode(text, add_special_tokens=False).offsets]
        return [bisect_right(ends, character) for character in characters]
    ends = list(accumulate(_bytes_of(encoder, token) for token in ids.tolist()))
    return [bisect_right(ends, len(text[:character].encode())) for character in characters]


def _bytes_of(encoder: Encoder, token: int) -> int:
    name = encoder.added.get(token)
    return len(name.encode()) if name is not None else len(str(encoder.exact.id_to_token(token)))


def _ids_of(tokens: Tokens, i: int) -> npt.NDArray[np.int32]:
    return tokens.ids[tokens.starts[i] : tokens.starts[i + 1]]


def _encoded_exactly(exact: Tokenizer, texts: Sequence[str]) -> Tokens:
    all_ids = [encoding.ids for encoding in exact.encode_batch_fast(texts, add_special_tokens=False)]
    starts = np.cumsum([0, *map(len, all_ids)], dtype=np.int64)
    ids = np.fromiter((token for ids in all_ids for token in ids), np.int32, int(starts[-1]))
    return Tokens(ids, starts)


def _encoded_fast(fast: Any, texts: Sequence[str]) -> Tokens:
    ids, starts = fast.encode_batch_flat(texts, split_special_tokens=True)
    return Tokens(np.frombuffer(ids, "<u4").view(np.int32), np.frombuffer(starts, "<u8").view(np.int64))


def _load_fast(tokenizer_json: Path, exact: Tokenizer) -> tuple[Any, str]:
    """The tokenizer of fastokens; None where it cannot be had, or differs, and why."""
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the processes of a build are the parallelism
    try:
        import fastokens
    except ImportError:
        return None, "there is no fastokens for this machine"
    try:
        fast = fastokens.Tokenizer.from_file(str(tokenizer_json))
        tokens = _encoded_fast(fast, _HARD)
    except (ValueError, RuntimeError):
        return None, "fastokens does not know this kind of tokenizer"
    expected = _encoded_exactly(exact, _HARD)
    same = np.array_equal(tokens.ids, expected.ids) and np.array_equal(tokens.starts, expected.starts)
    return (fast, "") if same else (None, "fastokens gives other ids for this tokenizer")
