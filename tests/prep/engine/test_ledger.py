"""The share of rejects that is allowed is the number that the user wrote, not the nearest binary fraction."""

from collections import Counter
from pathlib import Path

import pytest

from lmms.configs.errors import BuildError
from lmms.prep.engine.ledger import Ledger, check_rejects
from lmms.prep.reject import Reject
from lmms.prep.sources import Source


def ledger(rejected: int, read: int) -> Ledger:
    rejects = [(0, row, Reject("invalid_json", "not JSON")) for row in range(rejected)]
    source = Source("a.jsonl", (), "jsonl", Path())
    return Ledger([source], rejects=rejects, read=Counter({0: read}))


@pytest.mark.parametrize("percent", range(1, 100))
def test_exactly_the_allowed_share_is_allowed_and_no_record_more(percent: int, tmp_path: Path) -> None:
    share = float(f"0.{percent:02d}")
    check_rejects(ledger(percent, 100), share, tmp_path / "out")
    check_rejects(ledger(percent * 3, 300), share, tmp_path / "out")
    with pytest.raises(BuildError, match=f"--max-rejects allows {percent}.00%"):
        check_rejects(ledger(percent + 1, 101), share, tmp_path / "out")
