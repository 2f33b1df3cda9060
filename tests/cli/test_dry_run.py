"""lmms train --dry-run: its view, its JSON, its verdict and its status."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lmms.cli import ui
from lmms.cli.dry_run import print_view
from lmms.cli.main import app
from lmms.configs.errors import ConfigError
from lmms.configs.load import to_yaml
from lmms.train.plan import cards
from lmms.train.plan.advice import Proposal
from lmms.train.plan.cards import MEMORY
from lmms.train.plan.dry_run import dry_run
from tests.kit.runs import run_config, write_run

Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_run(tmp_path_factory.mktemp("run"), "qwen3_vl")


@pytest.fixture
def lmms(settings: dict[str, Any], tmp_path: Path) -> Invoke:
    """lmms train on a run's file, with more words; on a terminal of so many columns."""
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run_config(settings)))

    def invoke(*words: str, columns: int = 100, **env: str) -> Result:
        environment = {"COLUMNS": str(columns), **env}
        return CliRunner().invoke(app, ["train", "--config", str(file), *words], env=environment)

    return invoke


def test_json_is_the_dry_run(lmms: Invoke, settings: dict[str, Any]) -> None:
    done = lmms("--dry-run", "--json", "--card", "H100 80GB", "--ranks", "2")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    expected = dry_run(run_config(settings), 2, [cards.find_card("H100 80GB")])
    assert found["memory"] == expected.memory
    assert found["total"] == expected.total
    assert found["waiting"] == expected.waiting
    (card,) = found["cards"]
    assert (card["name"], card["memory"], card["fits"]) == ("H100 80GB", MEMORY["H100 80GB"], True)


def test_the_view_names_each_component_and_says_that_it_fits(lmms: Invoke) -> None:
    done = lmms("--dry-run", "--card", "H100 80GB")
    assert done.exit_code == 0, done.output
    for name in ("master weights", "optimizer states", "gradients", "allowance (assumed)", "total"):
        assert name in done.output
    assert done.output.splitlines()[-1].startswith("FITS: 1.6 GB a rank, most of it for allowance (assumed)")


def test_a_card_that_is_too_small_is_status_1_with_what_would_do(lmms: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(lmms("--dry-run", "--json", "--card", "H100 80GB", "memory.recompute=none").output)
    monkeypatch.setattr(cards, "MEMORY", {"Tiny": found["total"] - 1, "Smallest": 1, "Large": 10**12})
    done = lmms("--dry-run", "--card", "tiny", "memory.recompute=none")
    assert done.exit_code == 1
    assert "memory.recompute: elementwise  fits Tiny" in done.output
    assert "memory.recompute: full  fits Tiny" in done.output
    assert any(line.startswith("DOES NOT FIT") for line in done.output.splitlines()[-2:])
    assert "it would with memory.recompute: elementwise" in " ".join(done.output.split())
    assert lmms("--dry-run", "--card", "tiny", "memory.recompute=full").exit_code == 0
    none = lmms("--dry-run", "--card", "smallest")
    assert none.exit_code == 1
    assert "no change here is enough" in none.output
    some = lmms("--dry-run", "memory.recompute=none")
    assert some.exit_code == 0
    assert "FITS on Large" in some.output


def test_a_change_that_no_checkpoint_goes_on_with_comes_last_and_says_so(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = dry_run(run_config(settings), 1, [cards.Card(name="small", memory=1, peak_flops=None)])
    restart = Proposal(change="train.vision: frozen", total=0, from_start=True)
    for others, said in (
        ([], "train.vision: frozen in another output, from the start"),
        ([Proposal(change="2 ranks", total=1)], "2 ranks"),
    ):
        print_view(ui.console(), replace(found, proposals=[restart, *others]))
        shown = " ".join(capsys.readouterr().out.split())
        assert "train.vision: frozen in another output, from the start fits small" in shown
        assert shown.endswith(f"it would with {said}")


@pytest.mark.parametrize("card", ["H100 80GB", "smallest"])
@pytest.mark.parametrize("columns", [80, 100])
def test_the_view_keeps_to_the_terminal(lmms: Invoke, columns: int, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cards.MEMORY, "Smallest", 1)  # type: ignore[arg-type]
    memory = ("memory.recompute=none", "memory.recompute_vision=full", "memory.offload_activations_gb=2.5")
    done = lmms("--dry-run", "--card", card, *memory, "device=auto", "data.micro_packs=2", columns=columns)
    assert done.exit_code == (card == "smallest"), done.output
    assert max(map(len, done.output.splitlines())) <= columns
    assert "…" not in done.output
    words = " ".join(done.output.split())
    assert "recompute none, vision full, up to 2.5 GB in main memory" in words
    assert "pins 2.5 GB of main memory for each rank of a machine" in words
    assert ("memory.recompute: full" in words) == (card == "smallest")


def test_ranks_are_those_told_or_those_of_the_launcher(lmms: Invoke) -> None:
    def ranks(*words: str, **env: str) -> int:
        return int(json.loads(lmms("--dry-run", "--json", "--card", "H100 80GB", *words, **env).output)["ranks"])

    assert ranks() == 1
    assert ranks("--nproc", "2") == 2
    assert ranks(WORLD_SIZE="4", RANK="0") == 4
    assert ranks("--ranks", "3", WORLD_SIZE="4", RANK="0") == 3
    assert lmms("--dry-run", WORLD_SIZE="4", RANK="1").output == ""
    for wrong in ("0", "many"):
        with pytest.raises(ConfigError, match=f"WORLD_SIZE is '{wrong}' in the environment"):
            raise lmms("--dry-run", WORLD_SIZE=wrong).exception or AssertionError


@pytest.mark.parametrize("words", [("--card", "H100 80GB"), ("--ranks", "2"), ("--json",)])
def test_options_of_the_dry_run_alone_are_refused(lmms: Invoke, words: tuple[str, ...]) -> None:
    done = lmms(*words)
    assert isinstance(done.exception, ConfigError)
    assert "belong to --dry-run" in str(done.exception)


def test_an_unknown_card_is_an_error_with_the_names(lmms: Invoke) -> None:
    done = lmms("--dry-run", "--card", "abacus")
    assert isinstance(done.exception, ConfigError)
    assert "H100 80GB" in str(done.exception)
