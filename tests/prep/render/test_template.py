"""What a chat template reads, and which keywords a user may set."""

from pathlib import Path

import pytest

from lmms.configs.contract.model_folder import PREP_FILES, read_model_folder, resolve_model
from lmms.prep.render.template import compile_template


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("{{ name }}", {"name"}),
        ("{% if not name is defined %}{% set name = 'Ada' %}{% endif %}{{ name }}", {"name"}),
        ("{% set name = name or 'Ada' %}{{ name }}", {"name"}),
        ("{% for m in messages %}{% if m.a %}{% set name = m.a %}{% endif %}{{ name }}{% endfor %}", set()),
        ("{% for name in messages %}{{ name }}{% endfor %}", set()),
        ("{% for name in messages %}{{ name }}{% endfor %}{{ name }}", {"name"}),
        ("{% macro f(name) %}{{ name }}{% endmacro %}{{ f(1) }}", set()),
        ("{% macro f(name) %}{{ name }}{% endmacro %}{{ f(1) }}{{ name }}", {"name"}),
        ("{{ bos_token }}{{ tools }}{{ messages }}", set()),
    ],
)
def test_an_option_is_what_a_template_reads_before_it_sets_it(text: str, options: set[str]) -> None:
    assert compile_template(text).options == options


@pytest.mark.parametrize("option", ["content", "reasoning_content"])
def test_an_option_that_the_template_of_qwen3_sets_itself_is_refused_by_name(
    option: str, model_folders: dict[str, Path]
) -> None:
    folder = read_model_folder(resolve_model(str(model_folders["qwen3-text"]), PREP_FILES))
    template = compile_template(folder.chat_template)
    assert template.refused({"enable_thinking": False}) == ""
    assert template.refused({option: ""}) == f"the chat template sets {option!r} itself; it reads enable_thinking"
    assert "does not read 'thinking'" in template.refused({"thinking": 1})
