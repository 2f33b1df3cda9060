"""Whole runs on shards behind a server: through a cache, through its death, and after it."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.errors import ConfigError, DatasetError
from lmms.configs.settings.data import EvalConfig
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import checkpoint_name, list_checkpoints
from lmms.train.data.cache import cached_name
from lmms.train.run import train
from lmms.train.watch.metrics import METRICS_NAME, StepLog
from tests.kit.runs import assert_same_steps, read_metrics, run_config, silent, train_on_ranks, write_run
from tests.kit.stores.served import requests
from tests.kit.stores.servers import web_server

STEPS = 6


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return write_run(tmp_path, "qwen3_vl") | {"max_steps": STEPS, "save_steps": 2, "data.retry_s": 30.0}


@pytest.fixture
def expected(settings: dict[str, Any], tmp_path: Path) -> list[dict[str, Any]]:
    """The log of a run on the same shards as files."""
    train(run_config(settings, output=str(tmp_path / "local")), silent)
    return read_metrics(tmp_path / "local")


def remote(settings: dict[str, Any], url: str, output: Path, **changes: Any) -> TrainConfig:
    return run_config(settings, data__shards=f"{url}/shards", output=str(output), **changes)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_on_a_url_is_the_run_on_a_folder_with_and_without_a_cache(
    settings: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path, workers: int
) -> None:
    with web_server(tmp_path) as (_, url):
        plain = remote(settings, url, tmp_path / "plain", data__workers=workers)
        cached = remote(settings, url, tmp_path / "cached", data__workers=workers, data__cache=str(tmp_path / "cache"))
        for config in (plain, cached):
            train(config, silent)
            assert read_metrics(config.output) == expected
    assert any((tmp_path / "cache").glob("*.lmms-cache"))


def test_what_a_url_holds_besides_the_place_is_in_no_log(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    more = write_run(tmp_path / "more", "qwen3_vl", packs=5)["data.shards"]
    with web_server(tmp_path) as (_, url):
        events: list[StepLog | str] = []
        for steps, token in ((1, "SECRET1"), (2, "SECRET2")):
            places = [f"{url}/shards?token={token}", f"{url}/more/shards?token={token}"]
            mixture = [{"shards": place, "weight": 1.0} for place in places]
            mixed = run_config(
                settings, output=str(tmp_path / "run"), data__shards=None, data__mixture=mixture, max_steps=steps
            )
            train(mixed, events.append)
        with pytest.raises(ConfigError) as twice:
            train(replace(mixed, data=replace(mixed.data, mixture=mixed.data.mixture[:1] * 2)), silent)
    assert Path(more).is_dir()
    assert "more/shards" in read_metrics(tmp_path / "run")[0]["sets"]
    assert any("data.mixture was" in str(event) for event in events)
    logged = [*map(str, events), (tmp_path / "run" / METRICS_NAME).read_text(), str(twice.value)]
    assert not any("SECRET" in text for text in logged)


def test_training_and_evaluation_of_two_runs_share_a_cache(
    settings: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    with web_server(tmp_path) as (_, url):
        for name in ("first", "second"):
            config = remote(settings, url, tmp_path / name, data__cache=str(tmp_path / "cache"))
            train(replace(config, eval=EvalConfig(shards=f"{url}/shards", every_steps=3)), silent)
    first, second = read_metrics(tmp_path / "first"), read_metrics(tmp_path / "second")
    assert first == second
    assert [line["digest"] for line in first] == [line["digest"] for line in expected]
    assert [line["eval_loss"] is not None for line in first] == [False, False, True, False, False, True]


def test_shards_of_an_evaluation_enter_the_cache_before_it(
    settings: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_run(tmp_path / "other", "qwen3_vl", packs=3)
    held_out = open_dataset(tmp_path / "other" / "shards")
    names = {cached_name(held_out, shard) for shard in range(len(held_out.shards))}
    cache = tmp_path / "cache"
    with web_server(tmp_path) as (_, url):
        requests(tmp_path)

        def wait_in_the_first_step(event: StepLog | str) -> None:
            deadline = time.monotonic() + 600
            while isinstance(event, StepLog) and not all((cache / name).exists() for name in names):
                assert time.monotonic() < deadline
                time.sleep(0.01)

        config = remote(settings, url, tmp_path / "run", data__cache=str(cache))
        train(
            replace(config, eval=EvalConfig(shards=f"{url}/other/shards", every_steps=3)),
            wait_in_the_first_step,
        )
    lines = read_metrics(tmp_path / "run")
    assert [line["digest"] for line in lines] == [line["digest"] for line in expected]
    assert [line["eval_loss"] is not None for line in lines] == [False, False, True, False, False, True]


def test_data_sets_are_opened_by_rank_0_and_their_sidecars_fetched_once_a_node(
    settings: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    with web_server(tmp_path) as (_, url):
        requests(tmp_path)
        config = remote(settings, url, tmp_path / "run", data__cache=str(tmp_path / "cache"))
        train_on_ranks([config], 2)
    asked = requests(tmp_path)
    assert [asked.count(name) for name in ("manifest.json", "index.json", "packs.parquet")] == [1, 1, 1]
    assert_same_steps(read_metrics(tmp_path / "run"), expected)


def test_a_data_set_that_rank_0_cannot_open_ends_all_ranks(settings: dict[str, Any], tmp_path: Path) -> None:
    (shard, *_) = sorted((tmp_path / "shards").glob("*.mds"))
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(Exception, match=r"DatasetError: .*\.mds has \d+ bytes, expected \d+: truncated"):
        train_on_ranks([run_config(settings, output=str(tmp_path / "run"))], 2)


def test_a_server_that_dies_in_the_middle_of_a_run_and_comes_back_is_only_waited_for(
    settings: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    with web_server(tmp_path) as (server, url):
        (tmp_path / "faults").write_text("break kill")
        config = remote(settings, url, tmp_path / "run")
        back = threading.Thread(target=lambda: (server.wait(), server.start()))
        back.start()
        train(config, silent)
        back.join()
    assert not (tmp_path / "faults").exists()
    assert read_metrics(config.output) == expected


def test_a_server_that_stays_away_is_one_error_and_the_run_goes_on_when_it_is_back(
    settings: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    with web_server(tmp_path) as (server, url):

        def kill_after(event: StepLog | str) -> None:
            if isinstance(event, StepLog) and event.step == 4:
                server.kill()

        config = remote(settings, url, tmp_path / "run", data__retry_s=1.0, save_async=False)
        with pytest.raises(DatasetError, match=rf"{url}/shards/shard\.0000\d\.mds cannot be read: .*when it is back"):
            train(config, kill_after)
        assert list_checkpoints(tmp_path / "run")[0][-1].name == checkpoint_name(4)
        server.start()
        train(config, silent)
    assert read_metrics(config.output) == expected
