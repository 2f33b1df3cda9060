"""An image's bytes: found where the record says, and nothing outside the media root."""

import base64
import os
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmms.configs.errors import SourceError
from lmms.configs.stores.store import LocalStore
from lmms.prep.media.read import Looked, MediaRef, find_media, read_image, state_of
from lmms.prep.media.roots import media_roots, real_path
from lmms.prep.reject import REASONS, Reject
from tests.kit.media.pictures import encoded

PICTURE = b"the bytes of a picture"
URI = "data:image/png;base64,"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A media root with one picture, beside a file that must stay unread."""
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(PICTURE)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return folder


def path(value: str) -> MediaRef:
    return MediaRef("path", value)


def url(value: str) -> MediaRef:
    return MediaRef("url", value)


def rejection(reference: MediaRef, root: Path, max_bytes: int = 1000) -> Reject:
    with pytest.raises(Reject) as caught:
        read_image(reference, (root,), max_bytes)
    assert caught.value.reason in REASONS
    return caught.value


@pytest.mark.parametrize("kind", ["path", "url"])
@pytest.mark.parametrize("value", ["a.jpg", "./a.jpg", "sub/../a.jpg", "sub/../../root/a.jpg"])
def test_paths_are_relative_to_the_root(kind: Literal["path", "url"], value: str, root: Path) -> None:
    assert read_image(MediaRef(kind, value), (root,)) == PICTURE


def test_an_absolute_path_or_file_url_inside_the_root_is_read(root: Path) -> None:
    (root / "a b.jpg").write_bytes(b"blank")
    for value in (f"{root}/a.jpg", f"file://{root}/a.jpg", f"FILE://localhost{root}/a.jpg", f"file:{root}/a.jpg"):
        assert read_image(url(value), (root,)) == PICTURE
    assert read_image(url(f"file://{root}/a%20b.jpg"), (root,)) == b"blank"


def test_a_root_behind_a_link_is_the_same_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert read_image(path("a.jpg"), (tmp_path / "link",)) == PICTURE
    assert read_image(path(f"{root}/a.jpg"), (tmp_path / "link",)) == PICTURE


def test_only_a_url_is_percent_decoded_and_the_literal_name_wins(root: Path) -> None:
    (root / "a b.jpg").write_bytes(b"blank")
    assert read_image(url("a%20b.jpg"), (root,)) == b"blank"
    assert rejection(path("a%20b.jpg"), root).reason == "missing_file"
    (root / "a%20b.jpg").write_bytes(b"literal")
    assert read_image(url("a%20b.jpg"), (root,)) == b"literal"
    assert read_image(path("a%20b.jpg"), (root,)) == b"literal"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (path("../secret.jpg"), "path_outside_root"),
        (path("../root-too/secret.jpg"), "path_outside_root"),
        (path("sub/../../secret.jpg"), "path_outside_root"),
        (path(".."), "path_outside_root"),
        (url("%2e%2e/secret.jpg"), "path_outside_root"),
        (path("%2e%2e/secret.jpg"), "missing_file"),
        (path("/etc/hostname"), "absolute_path"),
        (path("//etc/hostname"), "absolute_path"),
        (url("%2Fetc%2Fhostname"), "absolute_path"),
        (url("file:///etc/hostname"), "absolute_path"),
        (path("file:///etc/hostname"), "absolute_path"),
        (url("file://server/share/a.jpg"), "absolute_path"),
        (url("file:../secret.jpg"), "path_outside_root"),
        (url("http://example.com/a.jpg"), "remote_url"),
        (url("HTTPS://example.com/a.jpg?size=large#top"), "remote_url"),
        (path("https://example.com/a.jpg"), "remote_url"),
        (path("s3://bucket/a.jpg"), "remote_url"),
        (path("b.jpg"), "missing_file"),
        (path("a.jpg/b.jpg"), "missing_file"),
        (path("sub"), "not_a_file"),
        (path("."), "not_a_file"),
        (path(""), "bad_part"),
        (url(""), "bad_part"),
        (path("a\0.jpg"), "bad_part"),
        (url("a%00.jpg"), "bad_part"),
        (path("a\ud800.jpg"), "bad_part"),
        (path("aGVsbG8g" * 1000), "bad_part"),
        (path("iVBORw0KGgo" * 1000 + "!"), "bad_data_uri"),
        (path("/9j/4AAQSkZJRgABAQ=="), "absolute_path"),
        (MediaRef("base64", "a.jpg"), "bad_data_uri"),
        (MediaRef("base64", " "), "bad_data_uri"),
        (path("~/a.jpg"), "missing_file"),
        (path("sub\\a.jpg"), "missing_file"),
        (MediaRef("bytes", b""), "empty_file"),
        (MediaRef("bytes", bytes(1001)), "file_too_large"),
    ],
)
def test_what_cannot_be_read_has_a_name(reference: MediaRef, reason: str, root: Path) -> None:
    assert rejection(reference, root).reason == reason


def test_a_link_is_followed_inside_the_root_and_never_out_of_it(root: Path, tmp_path: Path) -> None:
    (root / "inside.jpg").symlink_to("a.jpg")
    (root / "outside.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder").symlink_to(tmp_path)
    (root / "loop.jpg").symlink_to("loop.jpg")
    assert read_image(path("inside.jpg"), (root,)) == PICTURE
    assert rejection(path("outside.jpg"), root).reason == "path_outside_root"
    assert rejection(path("folder/secret.jpg"), root).reason == "path_outside_root"
    assert rejection(path("loop.jpg"), root).reason == "unreadable_file"


def test_pipes_and_devices_are_never_opened(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    assert rejection(path("pipe.jpg"), root).reason == "not_a_file"
    assert rejection(path("/dev/zero"), Path("/dev")).reason == "not_a_file"


def test_a_file_without_permission_is_unreadable(root: Path) -> None:
    (root / "a.jpg").chmod(0)
    if os.access(root / "a.jpg", os.R_OK):
        pytest.skip("this user may read every file")
    assert rejection(path("a.jpg"), root).reason == "unreadable_file"


def test_a_file_is_measured_before_it_is_read(root: Path) -> None:
    with (root / "huge.jpg").open("wb") as file:
        file.truncate(2**35)  # sparse: takes no room
    assert rejection(path("huge.jpg"), root).reason == "file_too_large"
    (root / "empty.jpg").touch()
    assert rejection(path("empty.jpg"), root).reason == "empty_file"
    assert read_image(path("a.jpg"), (root,), max_bytes=len(PICTURE)) == PICTURE
    assert rejection(path("a.jpg"), root, max_bytes=len(PICTURE) - 1).reason == "file_too_large"


@pytest.mark.parametrize("header", [URI, "DATA:Image/X-Any;Base64,", "data:image/png;charset=utf-8;base64,"])
@pytest.mark.parametrize("kind", ["path", "url"])
def test_a_data_uri_is_decoded_in_either_kind(header: str, kind: Literal["path", "url"], root: Path) -> None:
    assert read_image(MediaRef(kind, header + base64.b64encode(PICTURE).decode()), (root,)) == PICTURE


def test_a_wrapped_or_percent_encoded_data_uri_is_decoded(root: Path) -> None:
    data = bytes(range(256))
    assert read_image(url(URI + base64.encodebytes(data).decode()), (root,)) == data
    escaped = base64.b64encode(data).decode().replace("+", "%2B").replace("=", "%3D")
    assert read_image(url(URI + escaped), (root,)) == data


@pytest.mark.parametrize(
    "uri",
    [
        *("data:", "data:image/png;base64", "data:;base64,QUJD", "data:text/plain;base64,QUJD", "data:image/png,QUJD"),
        *(URI, f"{URI}  ", f"{URI}QUJ", f"{URI}QUJDRA", f"{URI}QU=D", f"{URI}Q*JD", f"{URI}QUJ\u0416", f"{URI}===="),
    ],
)
def test_a_bad_data_uri_is_rejected(uri: str, root: Path) -> None:
    assert rejection(url(uri), root).reason == "bad_data_uri"


def test_a_message_quotes_the_value_on_one_short_line(root: Path) -> None:
    for value in ("no\nsuch\x1b[31m.jpg", "x/" * 1000, "x" * 100_000, URI + "*" * 100_000, "http://" + "x" * 100_000):
        message = rejection(path(value), root).message
        assert message.isprintable()
        assert len(message) < 300 + len(str(root))


def test_a_reference_holds_bytes_only_as_bytes() -> None:
    with pytest.raises(TypeError, match="'path' cannot hold a bytes"):
        MediaRef("path", b"a.jpg")
    with pytest.raises(TypeError, match="'bytes' cannot hold a str"):
        MediaRef("bytes", "a.jpg")


@given(kind=st.sampled_from(["path", "url"]), value=st.text(st.characters(), max_size=30) | st.from_regex(r"[./%2e]+"))
def test_any_string_is_read_or_rejected(kind: Literal["path", "url"], value: str) -> None:
    reason = ""
    try:
        read_image(MediaRef(kind, value), (Path(__file__).parent,))
    except Reject as reject:
        reason = reject.reason
    assert not reason or reason in REASONS


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000"])
@pytest.mark.parametrize("kind", ["path", "url", "base64"])
def test_base64_of_a_picture_is_no_path(name: str, kind: Literal["path", "url", "base64"], root: Path) -> None:
    data = encoded(name)
    for text in (base64.b64encode(data).decode(), base64.encodebytes(data).decode()):
        assert read_image(MediaRef(kind, text), (root,)) == data
    assert read_image(path(base64.b64encode(data[:33]).decode()), (root,)) == data[:33]


def test_a_file_whose_name_could_be_base64_is_the_file(root: Path) -> None:
    name = "UklGR" + "a" * 43
    assert read_image(path(name), (root,)) == base64.b64decode(name)
    (root / name).write_bytes(PICTURE)
    assert read_image(path(name), (root,)) == PICTURE


def test_roots_are_tried_in_order(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jpg").write_bytes(b"other")
    (other / "b.jpg").write_bytes(b"only here")
    roots = (root, other)
    assert [read_image(path(name), roots) for name in ("a.jpg", "b.jpg")] == [PICTURE, b"only here"]
    assert read_image(path("a.jpg"), roots[::-1]) == b"other"
    assert read_image(path(f"{other}/a.jpg"), roots) == b"other"
    with pytest.raises(Reject, match=r"under the media roots .*root, .*other") as caught:
        read_image(path("c.jpg"), roots)
    assert caught.value.reason == "missing_file"


def test_links_and_dots_lead_from_one_root_to_another_and_no_further(tmp_path: Path) -> None:
    """As in a hub cache, and with a record file beside the folder of its pictures."""
    snapshot, blobs, records = (tmp_path / name for name in ("snapshots/rev", "blobs", "records"))
    for folder in (snapshot, blobs, records):
        folder.mkdir(parents=True)
    (blobs / "0a1b").write_bytes(PICTURE)
    (snapshot / "a.jpg").symlink_to("../../blobs/0a1b")
    (snapshot / "folder").symlink_to(blobs)
    for name in ("a.jpg", "folder/0a1b", "../../blobs/0a1b"):
        assert read_image(path(name), (snapshot, blobs)) == PICTURE
        assert rejection(path(name), snapshot).reason == "path_outside_root"
    assert read_image(path("../blobs/0a1b"), (records, blobs)) == PICTURE
    (blobs / "out").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    for name in ("folder/out", "../../secret.jpg"):
        with pytest.raises(Reject) as caught:
            read_image(path(name), (snapshot, blobs))
        assert caught.value.reason == "path_outside_root"


def test_a_path_out_of_the_root_says_which_root_would_do(root: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(PICTURE)
    (root / "link.jpg").symlink_to(tmp_path / "images" / "1.jpg")
    for value in ("../images/1.jpg", f"{tmp_path}/images/1.jpg", "link.jpg"):
        message = rejection(path(value), root).message
        assert message.endswith(f"--media-root '[{root}, {tmp_path}/images]'")
        assert read_image(path(value), (root, tmp_path / "images")) == PICTURE
    assert rejection(path("../images/2.jpg"), root).message.endswith("and nothing is there")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_written_apart_is_the_same_name(forms: tuple[str, str], root: Path) -> None:
    written, named = (unicodedata.normalize(form, "caf\u00e9 \ud55c.jpg") for form in forms)  # type: ignore[arg-type]
    (root / written).write_bytes(PICTURE)
    assert read_image(path(named), (root,)) == PICTURE
    (root / named).write_bytes(b"as it is written")
    assert read_image(path(named), (root,)) == b"as it is written"


@pytest.mark.parametrize(("value", "hint"), [("~/a.jpg", "a ~ is no folder"), ("sub\\a.jpg", "not by a backslash")])
def test_a_missing_file_has_a_hint_where_its_name_tells_why(value: str, hint: str, root: Path) -> None:
    assert hint in rejection(path(value), root).message
    assert ";" not in rejection(path("b.jpg"), root).message


def test_a_root_that_is_no_folder_is_an_error_at_once(root: Path, tmp_path: Path) -> None:
    assert media_roots(None, root) == (root,)
    assert media_roots(str(root), tmp_path) == (root,)
    assert media_roots((str(root), str(tmp_path)), tmp_path) == (root, tmp_path)
    with pytest.raises(SourceError, match=r"media_root .*/none does not exist"):
        media_roots((str(root), f"{tmp_path}/none"), tmp_path)
    with pytest.raises(SourceError, match=r"media_root .*a\.jpg is not a folder"):
        media_roots(f"{root}/a.jpg", tmp_path)


def test_a_picture_in_a_store_has_the_bounds_of_a_file_and_may_have_several_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmms.prep.media.beside._BLOCK", 8)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.png").write_bytes(PICTURE)
    store = LocalStore(tmp_path)
    for name in ("in/a b.png", "./in/../in/a b.png"):
        assert read_image(path(name), (), len(PICTURE), beside=store) == PICTURE
    assert read_image(url("in/a%20b.png"), (), beside=store) == PICTURE
    reasons = {"in/a b.png": "file_too_large", "../a.png": "path_outside_root", "in/none.png": "missing_file"}
    reasons |= {"..": "path_outside_root", "/a.png": "path_outside_root", "in": "fetch_failed"}
    for name, reason in reasons.items():
        with pytest.raises(Reject) as caught:
            read_image(path(name), (), len(PICTURE) - 1, beside=store)
        assert caught.value.reason == reason, name


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files, folders, and links to them, to one another, to nothing, and to themselves."""
    folder = tmp_path_factory.mktemp("linked").resolve()
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "f").write_bytes(PICTURE)
    links = {"l": "a", "a/up": "..", "a/b/f": "../f", "m": "l/b", "loop": "loop", "gone": "a/none", "x": str(folder)}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    return folder


@given(st.lists(st.sampled_from([*"abflmx.", "..", "up", "gone", "none", ""]), min_size=1, max_size=6))
@example(["loop"])
@example(["loop", "b"])
def test_the_links_of_a_path_lead_where_the_system_says(linked: Path, names: list[str]) -> None:
    folders: dict[str, str] = {}
    for _ in range(2):  # the second time, the folder is known
        path = f"{linked}/{'/'.join(names)}"
        assert real_path(path, folders) == os.path.realpath(path)


def test_a_folder_that_many_files_are_in_is_looked_up_once(root: Path) -> None:
    looked = Looked()
    for name in ("a.jpg", "b.jpg"):
        (root / name).write_bytes(PICTURE)
        read_image(path(name), (root,), looked=looked)
    real = os.path.realpath(root)
    assert looked.folders == {str(root): real}
    assert looked.files == {f"{real}/{name}": state_of(root / name) for name in ("a.jpg", "b.jpg")}


def test_base64_as_the_path_of_a_sound_is_told_the_data_uri_of_a_sound(root: Path) -> None:
    with pytest.raises(Reject, match="data:audio/TYPE;base64"):
        find_media(path("UklGR" * 1000), (root,), "audio")
