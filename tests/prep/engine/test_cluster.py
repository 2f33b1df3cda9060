"""A build on a real Ray cluster of two nodes: the bytes of a build on this machine, also if a node is killed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import obstore
import polars as pl
import pytest
from obstore.store import from_url

from lmms.configs.errors import BuildError, ConfigError, SourceError
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import SourceConfig
from lmms.prep.build import build_shards
from lmms.prep.build_report import REPORT_NAME
from lmms.prep.engine import cluster
from lmms.prep.engine.cluster import ray_cluster
from lmms.prep.engine.deaths import PROCESS_DIED
from lmms.prep.engine.tasks import Call, groups_on_ray, tasks_on_ray
from tests.kit.folders import shard_files, tiny_model_folder
from tests.kit.records import write_records
from tests.kit.stores.servers import s3_server

pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")

NODE_MEMORY = 2 * 2**30


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes with a core each, at RAY_ADDRESS, to which this process is connected.

    Its nodes reach an S3 server with an empty bucket.
    """
    from ray.cluster_utils import Cluster

    soon_dead = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 1, "memory": NODE_MEMORY, "include_dashboard": False, "_system_config": soon_dead}
    of_pytest = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patched, s3_server(patched):
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args=head)
        patched.setenv("RAY_ADDRESS", made.address)
        try:
            made.add_node(num_cpus=1, memory=NODE_MEMORY)
            with ray_cluster() as words:
                assert words == f"the Ray cluster at {made.address}, 2 nodes, 2 cores"
                yield made
        finally:
            made.shutdown()
            signal.signal(signal.SIGTERM, of_pytest)  # Ray puts its handler there, and leaves it


def settings(folder: Path, out: str, **more: Any) -> PrepConfig:
    values = {"seq_len": 512, "max_rejects": 0.5, "workers": 0, "shard_bytes": 2**20, **more}
    values.setdefault("sources", (str(folder / "data"),))
    return PrepConfig(model=str(tiny_model_folder(folder)), out=out, **values)


def talk(question: str, answer: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"{answer}"}]}


def write_sources(folder: Path) -> tuple[SourceConfig | str, ...]:
    """Sources of several kinds, of which one entry has several files and a limit."""
    write_records(folder / "data", 1300)
    records = [talk(f"{i}?", f"{i}!" * (i % 50)) for i in range(1200)]
    pl.DataFrame(records).write_parquet(folder / "table.parquet")
    (folder / "some").mkdir()
    for name in ("a", "b", "c"):
        (folder / "some" / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    some = SourceConfig(path=str(folder / "some"), max_records=2000)
    return (str(folder / "data"), some, str(folder / "table.parquet"))


def test_a_build_that_loses_a_node_has_the_bytes_of_a_build_on_one_machine(tmp_path: Path, nodes: Any) -> None:
    """Records wait at a gate until the node that will be lost has work too."""
    gate, lost_with_work = tmp_path / "gate", []
    waits = {"function": "tests.kit.gates:waits", "options": {"gate": str(gate)}}
    config = settings(tmp_path, str(tmp_path / "local"), sources=write_sources(tmp_path), eval_share=0.05)
    config = replace(config, transforms=(waits,))
    memory = [talk("in memory", i) for i in range(700)]
    build_shards(config, records=memory)
    lost = nodes.add_node(num_cpus=1)

    def lose() -> None:
        waits_there, until = Path(f"{gate}.{lost.node_id}"), time.monotonic() + 240
        while not waits_there.exists() and time.monotonic() < until:
            time.sleep(0.05)
        lost_with_work.append(waits_there.exists())
        nodes.remove_node(lost, allow_graceful=False)
        gate.unlink()

    gate.touch()
    thread = Thread(target=lose)
    thread.start()
    build_shards(replace(config, out=str(tmp_path / "ray"), engine="ray"), records=memory)
    thread.join()
    assert lost_with_work == [True]
    assert shard_files(tmp_path / "ray") == shard_files(tmp_path / "local")
    assert shard_files(tmp_path / "ray-eval") == shard_files(tmp_path / "local-eval")


def test_a_build_on_a_cluster_goes_on_from_what_is_kept_and_writes_to_a_bucket(tmp_path: Path, nodes: Any) -> None:
    write_records(tmp_path / "data", 1300)
    local = settings(tmp_path, str(tmp_path / "local"), store=str(tmp_path / "store"))
    build_shards(local)
    kept = {file: file.stat().st_ino for file in (tmp_path / "store").rglob("*.npz")}
    assert len(kept) == 3
    build_shards(replace(local, out="s3://bucket/out", work=str(tmp_path / "work"), engine="ray"))
    store = from_url("s3://bucket/out")
    names = [entry["path"] for entry in obstore.list_with_delimiter(store)["objects"] if entry["path"] != REPORT_NAME]
    assert {name: bytes(obstore.get(store, name).bytes()) for name in names} == shard_files(tmp_path / "local")
    assert {file: file.stat().st_ino for file in (tmp_path / "store").rglob("*.npz")} == kept


def test_a_build_of_which_the_driver_is_killed_goes_on_to_the_same_bytes(tmp_path: Path, nodes: Any) -> None:
    write_records(tmp_path / "data", 6000)
    config = settings(tmp_path, str(tmp_path / "out"), store=str(tmp_path / "store"), engine="ray")
    code = (
        "from lmms.configs.settings.prep import PrepConfig\nfrom lmms.prep.build import build_shards\n"
        f"build_shards({config!r})\n"
    )
    started = subprocess.Popen([sys.executable, "-c", code])
    while not (kept := list((tmp_path / "store").rglob("*.npz"))):
        assert started.poll() is None
        time.sleep(0.01)
    started.kill()
    started.wait()
    made = {file: file.stat().st_ino for file in kept}
    assert not (tmp_path / "out").exists()
    build_shards(config)
    assert {file: file.stat().st_ino for file in kept} == made
    build_shards(replace(config, out=str(tmp_path / "local"), engine="local", store="none"))
    assert shard_files(tmp_path / "out") == shard_files(tmp_path / "local")


def test_a_damaged_file_ends_the_build_with_its_name(tmp_path: Path, nodes: Any) -> None:
    data = tmp_path / "data"
    data.mkdir()
    pl.DataFrame([talk("a", "b")] * 2000).write_parquet(data / "a.parquet", row_group_size=1000)
    (data / "b.jsonl.gz").write_bytes(b"\x1f\x8b\x08 cut off")
    with pytest.raises(SourceError, match=r"b\.jsonl\.gz: cannot be read"):
        build_shards(settings(tmp_path, str(tmp_path / "out"), engine="ray", form="openai"))
    assert not (tmp_path / "out").exists()


def kill_once(folder: Path, task: tuple[int, str]) -> str:
    """The worker of piece 2 is killed, once if the piece is `once`."""
    number, piece = task
    mark = folder / f"{number}"
    if number == 2 and not (piece == "once" and mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{number} {piece}"


def set_up() -> None:
    """Workers need nothing."""


def test_a_killed_worker_costs_a_retry_and_a_piece_that_always_kills_has_a_name(tmp_path: Path, nodes: Any) -> None:
    call = Call(partial(kill_once, tmp_path), set_up, (tmp_path,))
    results = list(tasks_on_ray(call, enumerate(["a", "b", "once", "d"]), "piece {}".format))
    assert results == ["0 a", "1 b", "2 once", "3 d"]
    with pytest.raises(BuildError, match=r"^Ray gave up on piece 2: "):
        list(tasks_on_ray(call, enumerate(["a", "b", "always", "d"]), "piece {}".format))


def test_a_record_that_kills_its_worker_is_lost_alone_as_on_one_machine(tmp_path: Path, nodes: Any) -> None:
    """Two records of the second of three chunks; the others have the bytes of a build by local processes."""
    write_records(tmp_path / "data", 1300)
    kills = {"function": "tests.kit.gates:kills", "options": {"words": ["answer 701", "answer 705"]}}
    config = settings(tmp_path, str(tmp_path / "ray"), transforms=(kills,), store="none", engine="ray")
    build_shards(config)
    build_shards(replace(config, out=str(tmp_path / "local"), engine="local", workers=2))
    rejects = pl.read_parquet(tmp_path / "ray" / "rejects.parquet").filter(reason=PROCESS_DIED)
    assert rejects["row"].to_list() == [702, 706]  # a blank line stands before
    assert shard_files(tmp_path / "ray") == shard_files(tmp_path / "local")


def take_memory(task: tuple[int, str]) -> str:
    """A piece `much` kills a worker of Ray, and in a process below such a worker takes more than its node has."""
    _, piece = task
    if piece == "much":
        if not multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        assert [bytearray(2**26) for _ in range(NODE_MEMORY // 2**26)]
    return piece


def how_it_died(task: tuple[int, str], how: str, step: int | None) -> tuple[int, str]:
    return task[0], how


def test_a_piece_that_killed_workers_has_the_memory_of_a_core(tmp_path: Path, nodes: Any) -> None:
    call = Call(take_memory, set_up, ())
    results = list(groups_on_ray(call, iter, [["a", "much", "b"]], iter(()), str, lambda: how_it_died))
    assert results == ["a", "ran out of memory (fewer workers need less)", "b"]


def fail(task: tuple[int, str]) -> str:
    raise KeyError(task[1])


def test_what_a_task_raises_is_raised_with_the_place_in_the_task(tmp_path: Path, nodes: Any) -> None:
    with pytest.raises(KeyError, match="a") as caught:
        list(tasks_on_ray(Call(fail, set_up, ()), enumerate("abc"), str))
    assert "in fail" in caught.value.__notes__[0]


def test_a_machine_that_does_not_reach_the_files_is_named(tmp_path: Path, nodes: Any) -> None:
    call = Call(fail, set_up, (tmp_path, tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match=r"machine \S+ of the Ray cluster does not reach .*/elsewhere; with engine"):
        list(tasks_on_ray(call, enumerate("abc"), str))


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"engine ray needs the package ray; install it: pip install 'lmms\[ray\]'"):
        build_shards(settings(tmp_path, str(tmp_path / "out"), engine="ray"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1, which RAY_ADDRESS names .*; start one there"),
        ("ray://127.0.0.1:10001", "RAY_ADDRESS is ray://127.0.0.1:10001, expected HOST:PORT; start the build on a"),
    ],
)
def test_a_cluster_that_is_not_there_is_an_error_at_once(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", bool)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=message), ray_cluster():
        pass


def test_the_command_line_says_on_which_cluster_it_builds(tmp_path: Path, nodes: Any) -> None:
    write_records(tmp_path / "data", 60)
    values = [
        "--model",
        str(tiny_model_folder(tmp_path)),
        "--seq-len",
        "512",
        "--max-rejects",
        "0.5",
        "--engine",
        "ray",
    ]
    command = [sys.executable, "-m", "lmms.cli", "prep", "build-shards", "data", "--out", "out", *values]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"on the Ray cluster at {nodes.address}, " in said
    assert (tmp_path / "out" / "manifest.json").exists()
