"""Tables are read in a child: its death, and whatever a library throws there, is an error about one file."""

import subprocess
import sys
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pytest

from lmms.prep.reject import Reject
from lmms.prep.rows import child
from lmms.prep.rows.arrow import batch_values, read_arrow
from lmms.prep.rows.child import how_ended, table_reader


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "import os, signal; input(); os.kill(os.getpid(), signal.SIGSEGV)",
            "was ended by SIGSEGV, a crash in a library",
        ),
        ("input(); raise SystemExit(3)", "ended with status 3"),
        ("import sys; input(); sys.stdout.write('half'); sys.stdout.flush()", "ended with status 0"),
    ],
)
def test_a_child_that_dies_is_an_error_that_says_how(code: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(stderr: IO[bytes]) -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=stderr)

    monkeypatch.setattr(child, "_start", start)
    with table_reader() as read_table, pytest.raises(OSError, match=f"the process that read the file {said}"):
        list(read_table("parquet", Path("a.parquet"), (), None))


def test_a_new_child_reads_on_after_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pl.DataFrame({"messages": ["[]"] * 3}).write_parquet(tmp_path / "a.parquet")
    children: list[subprocess.Popen[bytes]] = []
    start = child._start

    def remember(stderr: IO[bytes]) -> "subprocess.Popen[bytes]":
        children.append(start(stderr))
        return children[-1]

    monkeypatch.setattr(child, "_start", remember)
    with table_reader() as read_table:
        for _ in range(2):
            (part,) = read_table("parquet", tmp_path / "a.parquet", ("messages",), None)
            assert len(part[0]) == 3
        assert len(children) == 1
        children[0].kill()
        children[0].wait()
        assert len(list(read_table("parquet", tmp_path / "a.parquet", ("messages",), None))) == 1
    assert [process.poll() is not None for process in children] == [True, True]


@pytest.mark.parametrize("kills", [1, 2, 3])
def test_a_child_that_is_killed_is_started_again_and_reads_on(
    kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pl.DataFrame({"messages": [f"[{i}]" for i in range(2000)]}).write_parquet(tmp_path / "a.parquet")
    started: list[subprocess.Popen[bytes]] = []
    start = child._start
    code = """
import os, signal
from lmms.prep.rows import child, tables
read = tables.read_table
def killed(*arguments):
    for number, part in enumerate(read(*arguments)):
        yield part
        if number == 1:
            child.os.kill(os.getpid(), signal.SIGKILL)
tables.read_table = killed
child.serve()
"""

    def start_and_kill(stderr: IO[bytes]) -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        command = [sys.executable, "-u", "-c", code]
        started.append(
            start(stderr)
            if len(started) >= kills
            else subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, process_group=0)
        )
        return started[-1]

    monkeypatch.setattr(child, "_start", start_and_kill)
    with table_reader() as read_table:
        answers = read_table("parquet", tmp_path / "a.parquet", ("messages",), None)
        if kills > 2:
            with pytest.raises(OSError, match="was ended by SIGKILL"):
                list(answers)
        else:
            rows = [row["messages"] for part, _ in answers for row in part.unpack()]
            assert rows == [f"[{i}]" for i in range(2000)]
            assert len(started) == kills + 1


def test_memory_that_ran_out_is_said_to_have() -> None:
    assert "when memory runs out" in how_ended(-9)


def test_a_nested_text_that_is_not_utf8_costs_its_row_alone_and_damage_behind_it_is_seen(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": f"text {i}", "more": [{"x": "y"}]}] for i in range(20)]
    table = pa.table({"messages": pa.array(turns), "text": pa.array(["t"] * 20, pa.large_string())})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    data = bytearray((tmp_path / "a.arrow").read_bytes())
    data[data.index(b"text 7")] = 0xFF
    (tmp_path / "a.arrow").write_bytes(data)
    ((batch, _),) = read_arrow(tmp_path / "a.arrow", ("messages", "text"))
    assert [isinstance(value, Reject) for value in batch_values(batch, ("messages", "text"))] == [
        row == 7 for row in range(20)
    ]
    offset = data.index((6 * 5).to_bytes(4, "little") + (6 * 6).to_bytes(4, "little"))  # where "text 5" begins
    data[offset + 3] = 0x70
    (tmp_path / "a.arrow").write_bytes(data)
    with pytest.raises(OSError, match=r"[Oo]ffset"):
        list(read_arrow(tmp_path / "a.arrow", ("messages", "text")))
