"""Shards behind a web server, for the tests of what reads and keeps them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lmms.configs.contract.pack import Pack
from tests.kit.stores.served import served_folder, served_packs
from tests.kit.stores.servers import Server, web_server


@pytest.fixture(scope="module")
def packs() -> list[Pack]:
    return served_packs()


@pytest.fixture
def root(tmp_path: Path, packs: list[Pack]) -> Path:
    return served_folder(tmp_path / "served", packs)


@pytest.fixture
def web(root: Path) -> Iterator[tuple[Server, str]]:
    with web_server(root) as (server, url):
        yield server, url + "/shards"
