"""A picture that was checked is not checked again, unless anything of it or of the check differs."""

from collections.abc import Callable

import pytest

from lmms.prep.media import verified
from lmms.prep.media.images import image_size
from lmms.prep.media.verified import verified_size
from lmms.prep.reject import Reject
from tests.kit.media.pictures import HEIGHT, MAX_PIXELS, WIDTH, encoded


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each picture was checked that was not known."""
    made: list[str] = []

    def counted(data: bytes, verify: str, max_pixels: int) -> tuple[int, int]:
        made.append(verify)
        return image_size(data, verify, max_pixels)  # type: ignore[arg-type]

    monkeypatch.setattr(verified, "image_size", counted)
    monkeypatch.setattr(verified, "_known", {})
    return made


def test_an_equal_file_is_checked_once(checks: list[str]) -> None:
    sizes = [verified_size(encoded("PNG"), "decode", MAX_PIXELS) for _ in range(3)]
    assert sizes == [(WIDTH, HEIGHT)] * 3
    assert checks == ["decode"]


def test_another_file_another_check_and_another_limit_are_checked(checks: list[str]) -> None:
    data = encoded("PNG")
    for arguments in [(data, "header", 10**6), (data, "decode", 10**6), (data, "decode", 10**5)]:
        verified_size(*arguments)
    verified_size(encoded("PNG", "L"), "decode", 10**5)
    assert checks == ["header", "decode", "decode", "decode"]
    with pytest.raises(Reject, match="more than 9 pixels"):
        verified_size(data, "decode", 9)


def test_a_damaged_file_is_refused_each_time(checks: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(Reject, match="cannot be decoded"):
            verified_size(encoded("JPEG")[:-100], "decode", MAX_PIXELS)


def test_the_oldest_picture_is_forgotten(checks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "MOST_KNOWN", 2)
    names: list[Callable[[], bytes]] = [lambda: encoded("PNG"), lambda: encoded("JPEG"), lambda: encoded("BMP")]
    for make in [*names, *reversed(names)]:
        verified_size(make(), "header", MAX_PIXELS)
    assert len(checks) == 4
