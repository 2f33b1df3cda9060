"""Two tokenizers, one result; and which token is behind a character."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.errors import BuildError, ModelError
from lmms.prep.render.tokens import Encoder, encode_texts, load_encoder, tokens_behind
from tests.kit.folders import DEMO_MODEL

PIECES = st.sampled_from(
    [
        *"ab <>|\n\t.,",
        "\r\n",
        "<|im_end|>",
        "<think>",
        "</think>",
        "e\u0301",
        "\u0301",
        "\u4e2d",
        "\U0001f600",
        "12",
        "'s",
        "\u1161",
    ]
)
TEXTS = st.lists(PIECES, max_size=30).map("".join)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(DEMO_MODEL / "tokenizer.json")


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_the_fast_tokenizer_gives_the_ids_of_the_models(texts: list[str], encoder: Encoder) -> None:
    assert encoder.fast
    fast, exact = encode_texts(encoder, texts), encode_texts(replace(encoder, fast=None), texts)
    assert fast.ids.tolist() == exact.ids.tolist()
    assert fast.starts.tolist() == exact.starts.tolist()


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_the_token_behind_each_character_is_that_of_the_tokenizers_own_offsets(text: str, encoder: Encoder) -> None:
    encoding = encoder.exact.encode(text, add_special_tokens=False)
    expected = [sum(end <= place for _, end in encoding.offsets) for place in range(len(text) + 1)]
    assert tokens_behind(encoder, text, np.array(encoding.ids, np.int32), range(len(text) + 1)) == expected


class WrongTokenizer:
    """Gives a token too much for each text."""

    def encode_batch_flat(self, texts: list[str], split_special_tokens: bool) -> tuple[bytes, bytes]:
        ids = np.full(len(texts), 7, "<u4")
        return ids.tobytes(), np.arange(len(texts) + 1, dtype="<u8").tobytes()


def test_other_ids_of_the_fast_tokenizer_stop_the_build_with_advice(encoder: Encoder) -> None:
    wrong = replace(encoder, fast=WrongTokenizer())
    assert encode_texts(wrong, ["not checked: its length is no multiple"]).ids.tolist() == [7]
    with pytest.raises(BuildError, match=r"other ids than the model's tokenizer for 'xxx.*set fast=false"):
        encode_texts(wrong, ["x" * 211])


@pytest.mark.parametrize("name", ["qwen2.5-text", "qwen3-vl"])
def test_the_fast_tokenizer_is_used_for_the_real_models(name: str, model_folders: dict[str, Path]) -> None:
    encoder = load_encoder(model_folders[name] / "tokenizer.json")
    text = "Na\u00efve caf\u00e9: 12,345 \u4e2d\u6587\n\n<|im_end|><think>"
    assert encoder.fast is not None
    assert encode_texts(encoder, [text]).ids.tolist() == encoder.exact.encode(text, add_special_tokens=False).ids


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer that can be loaded"):
        load_encoder(tmp_path / "tokenizer.json")


def test_without_the_package_or_where_it_differs_the_models_tokenizer_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import fastokens

    class Wrong:
        @staticmethod
        def from_file(path: str) -> Any:
            return WrongTokenizer()

    monkeypatch.setattr(fastokens, "Tokenizer", Wrong)
    assert load_encoder(DEMO_MODEL / "tokenizer.json").fast is None
    monkeypatch.setitem(__import__("sys").modules, "fastokens", None)
    assert load_encoder(DEMO_MODEL / "tokenizer.json").fast is None
