"""The 210 records of the real videos and sounds: each is packed, or rejected for the right reason."""

from collections import Counter
from pathlib import Path

from tools.bench.av_records import outcomes


def test_a_model_that_sees_and_hears_nothing_takes_all_videos_and_no_sound(
    shared: Path, model_folders: dict[str, Path]
) -> None:
    table = outcomes(shared / "data" / "av", str(model_folders["qwen3-vl"]))
    assert sum(counts.total() for counts in table.values()) == 210
    assert table["video"] == Counter(packed=29)
    heard = {media: counts for media, counts in table.items() if "audio" in media}
    assert set(heard) == {"audio", "audio, image", "audio, video"}
    assert all(counts.keys() == {"audio_unsupported"} for counts in heard.values())


def test_a_model_that_sees_and_hears_takes_them_all(shared: Path, model_folders: dict[str, Path]) -> None:
    table = outcomes(shared / "data" / "av", str(model_folders["qwen2.5-omni"]))
    assert sum(table.values(), Counter()) == Counter(packed=210)
