"""Faults of builds: each ends as its page says; the campaign of kills, in a bounded form; and that both would see."""

from pathlib import Path

import pytest

from tools.faults.build_faults import FAULTS, NotPossible, check_refused, check_same, run_fault, settings, what_it_does
from tools.faults.builds import Findings, main, report


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_as_its_page_says(name: str, tmp_path: Path) -> None:
    try:
        assert run_fault(name, tmp_path) == ""
    except NotPossible as error:
        pytest.skip(str(error))


@pytest.mark.campaign
def test_builds_that_are_killed_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    assert main(["--kills", "3", "--seed", "5", "--only-kills", "--report", str(page)]) == 0
    assert "**None of them changed a byte" in page.read_text()


def test_a_byte_that_differs_a_file_left_behind_and_an_error_that_did_not_come_are_seen(tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises(AssertionError, match="no error; expected"):
        check_refused(config, "was deleted")
    (tmp_path / "out.lmms-part").mkdir()
    with pytest.raises(AssertionError, match="left behind"):
        check_same(config)
    shard = tmp_path / "out" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    for folder in tmp_path.glob("out-*"):
        folder.rename(tmp_path / "elsewhere")
    with pytest.raises(AssertionError, match="differ"):
        check_same(config)


def test_the_page_says_what_went_wrong_and_what_each_fault_does() -> None:
    page = report(Findings(faults=dict.fromkeys(FAULTS, "as said"), wrong=["build3: differs"]), seed=5)
    assert "**1 of them changed a byte" in page
    assert "- build3: differs" in page
    assert all(f"| {name} | {what_it_does(name)} | as said |" in page for name in FAULTS)
    assert all(what_it_does(name).endswith(".") for name in FAULTS)
