"""lmms prep build-shards: options and file give the same build; what it prints, where."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from lmms.cli.demo.draw import draw_pictures
from lmms.cli.main import app
from lmms.configs.contract.manifest import read_manifest
from lmms.configs.stores.store import LocalStore
from lmms.prep.sample.frame_prices import CHOICES
from tests.kit.folders import VIDEO_TEMPLATE, shard_files, tiny_model_folder
from tests.kit.media.videos import video


def lmms(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "120"})


def build(tmp_path: Path, out: str, *more: object) -> Result:
    options = ("--model", tiny_model_folder(tmp_path), "--seq-len", 256, "--out", tmp_path / out, "--workers", 1)
    return lmms("prep", "build-shards", tmp_path / "set.jsonl", *options, *more)


def test_options_and_a_file_of_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    draw_pictures(tmp_path, "set", 30, 0)
    assert build(tmp_path, "a", "--seed", 3, "--min-pixels", 4096).exit_code == 0
    settings = {
        "sources": [str(tmp_path / "set.jsonl")],
        "model": str(tmp_path / "model"),
        "seq_len": 256,
        "out": str(tmp_path / "b"),
        "seed": 3,
        "min_pixels": 4096,
        "workers": 2,
    }
    (tmp_path / "prep.yaml").write_text(yaml.safe_dump(settings))
    assert lmms("prep", "build-shards", "--config", tmp_path / "prep.yaml").exit_code == 0
    assert shard_files(tmp_path / "a") == shard_files(tmp_path / "b")


def test_an_option_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "prep.yaml").write_text("sources: [a.jsonl]\nmodel: m\nseq_len: 256\nout: o\n")
    result = lmms("prep", "build-shards", "--config", tmp_path / "prep.yaml", "--seq-len", 512, "--print-config")
    assert yaml.safe_load(result.output)["seq_len"] == 512


def test_the_closing_table_counts_every_record_by_what_became_of_it(tmp_path: Path) -> None:
    draw_pictures(tmp_path, "set", 30, 0)
    records = (tmp_path / "set.jsonl").read_text()
    (tmp_path / "set.jsonl").write_text(records + "\n{\n" + records.replace("set/", "gone/").split("\n")[0] + "\n")
    result = build(tmp_path, "out", "--max-rejects", 0.1)
    assert "33 read = 30 packed + 2 rejected + 1 skipped" in result.output
    assert "missing_file" in result.output
    assert "invalid_json" in result.output


def test_the_closing_tables_name_each_source_what_the_build_took_and_its_report(tmp_path: Path) -> None:
    draw_pictures(tmp_path, "set", 30, 0)
    draw_pictures(tmp_path, "more", 10, 1)
    words = " ".join(build(tmp_path, "out", str(tmp_path / "more.jsonl")).output.split())
    assert "read packed rejected tokens worker time source 30 30 0" in words
    assert "s set.jsonl 10 10 0" in words
    assert "of CPU time, 1 worker," in words
    assert "rendered 40 conversations" in words
    assert "tokenizer tokenizers, since the sources are small" in words
    assert "report build-report.json" in words


def test_without_a_terminal_there_are_no_colours_and_with_quiet_nothing_at_all(tmp_path: Path) -> None:
    draw_pictures(tmp_path, "set", 30, 0)
    plain = build(tmp_path, "plain")
    assert "reading 100%" in plain.output
    assert "\x1b" not in plain.output
    quiet = build(tmp_path, "quiet", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    result = lmms("prep", "build-shards", "--seq-len", 256)
    assert result.exit_code == 1
    assert "sources, model, out" in str(result.exception)


def test_a_name_that_looks_like_markup_is_shown_as_it_is(tmp_path: Path) -> None:
    draw_pictures(tmp_path, "set", 30, 0)
    records = (tmp_path / "set.jsonl").read_text().replace('{"messages"', '{"[/b]": 1, "messages"')
    (tmp_path / "set.jsonl").write_text(records)
    result = build(tmp_path, "out[red]")
    assert result.exit_code == 0, result.output
    assert "column [/b]" in result.output
    assert "out[red]" in result.output.replace("\n", "")


def test_what_of_a_folder_is_not_read_is_one_line_of_the_closing_table(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "data", "set", 30, 0)
    (tmp_path / "data" / "notes.txt").write_text("")
    (tmp_path / "data" / ".trash").mkdir()
    (tmp_path / "data" / ".trash" / "set.jsonl").write_bytes((tmp_path / "data" / "set.jsonl").read_bytes())
    options = ("--model", tiny_model_folder(tmp_path), "--seq-len", 256, "--out", tmp_path / "out", "--workers", 1)
    result = lmms("prep", "build-shards", tmp_path / "data", *options)
    assert "30 read = 30 packed" in result.output
    (line,) = [line for line in result.output.splitlines() if "not read" in line]
    assert " ".join(line.split()) == "not read 30 files .png, 1 hidden folder, 1 file .txt"


def test_ctrl_c_removes_what_was_begun_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_pictures(tmp_path, "set", 30, 0)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lmms.prep.first_pass.spool_chunk", interrupted)
    result = build(tmp_path, "out", "--workers", 0)
    assert (result.exit_code, result.output.splitlines()[-1]) == (
        130,
        f"stopped: there is nothing at {tmp_path / 'out'}, and what was begun is removed",
    )
    assert not list(tmp_path.glob("out*"))


def test_the_closing_table_names_the_settings_that_left_records_out_and_both_folders(tmp_path: Path) -> None:
    draw_pictures(tmp_path, "set", 40, 0)
    result = build(tmp_path, "out", "--eval-share", 0.3, "--max-records", 35)
    words = " ".join(result.output.split())
    held_out = read_manifest(LocalStore(tmp_path / "out-eval")).counts["packed"]
    assert f"35 read = {35 - held_out} packed + 0 rejected + {held_out} skipped" in words
    assert f"evaluation {held_out} skipped" in words
    assert f"out-eval: {held_out} records in " in words
    assert "eval.shards=" in words
    assert "of the packed records" not in words


def test_the_closing_table_says_how_many_samples_repeats_make(tmp_path: Path) -> None:
    draw_pictures(tmp_path, "set", 10, 0)
    (tmp_path / "list.yaml").write_text(f"- {{path: {tmp_path / 'set.jsonl'}, repeat: 2}}\n")
    options = ("--model", tiny_model_folder(tmp_path), "--seq-len", 256, "--workers", 1, "--out", tmp_path / "out")
    result = lmms("prep", "build-shards", tmp_path / "list.yaml", *options)
    assert "20 of the packed records" in result.output


def test_a_store_is_shown_and_what_is_old_or_too_much_is_deleted(tmp_path: Path) -> None:
    draw_pictures(tmp_path, "set", 30, 0)
    store = tmp_path / "kept"
    for seq_len in (256, 257):
        assert build(tmp_path, f"out{seq_len}", "--store", store, "--seq-len", seq_len).exit_code == 0
    with (tmp_path / "set.jsonl").open("a") as file:
        file.write((tmp_path / "set.jsonl").read_text().splitlines()[0] + "\n")
    assert build(tmp_path, "more", "--store", store).exit_code == 0
    (store / "ab").mkdir(exist_ok=True)
    (store / "ab" / "x.npz.1.part").write_text("left by a build that was killed")
    shown = lmms("prep", "store", store)
    assert re.search(r"kept +2 chunks, [0-9.]+ ?kB", shown.output, re.IGNORECASE)
    old = sorted(store.rglob("*.npz"), key=lambda file: file.stat().st_mtime)[0]
    os.utime(old, (1, 1))
    assert "deleted" in lmms("prep", "store", store, "--older-than", "30d").output
    assert not old.exists()
    assert not list(store.rglob("*.part"))
    assert "0 chunks" in lmms("prep", "store", store, "--larger-than", "1GB").output
    assert "deleted" in lmms("prep", "store", store, "--larger-than", "1KB").output
    assert not [file for file in store.rglob("*") if file.is_file()]
    nothing = lmms("prep", "store", store)
    assert nothing.exit_code
    assert "holds no chunks" in str(nothing.exception)
    wrong = lmms("prep", "store", store, "--older-than", "soon")
    assert wrong.exit_code == 2
    assert "such as 30d" in wrong.output


def test_a_plan_compares_lengths_and_writes_nothing(tmp_path: Path) -> None:
    draw_pictures(tmp_path, "set", 60, 0)
    words = ("prep", "plan", tmp_path / "set.jsonl", "--model", tiny_model_folder(tmp_path), "--workers", 0)
    before = sorted(tmp_path.rglob("*"))
    shown = lmms(*words, "--seq-len", "512,256", "--ranks", "2,4")
    assert shown.exit_code == 0
    assert re.search(r" 256 +balanced +\d+ +[0-9.]+% +0 +[0-9.]+ +[0-9.]+% +[0-9.]+%", shown.output)
    assert re.search(r" 512 +tight ", shown.output)
    assert f"lmms prep build-shards {tmp_path / 'set.jsonl'}"[:60] in shown.output
    assert re.search(r" media +\d+ images, rows of videos, and sounds, [0-9,]+ patches", shown.output)
    body = json.loads(lmms(*words, "--seq-len", "256", "--json").output)
    assert [packing["plan"] for packing in body["packings"]] == ["balanced", "tight"]
    assert sum(body["lengths"]) > 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "such as 1%, 0.05 or all" in lmms(*words, "--seq-len", "256", "--sample", "2").output
    assert "such as 4096,16384" in lmms(*words, "--seq-len", "short").output


def test_a_plan_prices_each_choice_of_frames(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(video(50))
    (tmp_path / "template.jinja").write_text(VIDEO_TEMPLATE)
    messages = [
        {"role": "user", "content": [{"type": "video", "video": "a.mp4"}]},
        {"role": "assistant", "content": "A"},
    ]
    (tmp_path / "set.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    words = ("prep", "plan", tmp_path / "set.jsonl", "--model", tiny_model_folder(tmp_path), "--workers", 0)
    words += ("--seq-len", 512, "--media-root", tmp_path, "--chat-template", tmp_path / "template.jinja")
    shown = lmms(*words, "--video-quality", 80)
    assert "as 1 video tell" in shown.output
    assert re.search(r"B +[0-9.,]+ ?.?B +resized +jpeg of video_quality 80, as set *\n", shown.output)
    assert re.search(r"B +[0-9.,]+ ?.?B +original +png *\n", shown.output)
    choices = json.loads(lmms(*words, "--json").output)["frame_choices"]
    assert [(choice["video_frames"], choice["video_encoding"]) for choice in choices] == list(CHOICES)


def test_a_switch_may_stand_without_a_value() -> None:
    words = ("prep", "build-shards", "a.jsonl", "--model", "m", "--seq-len", 256, "--out", "o", "--print-config")
    for switch in (("--allow-network",), ("--allow-network", "true"), ("--allow-network", "--seed", 3)):
        assert yaml.safe_load(lmms(*words, *switch).output)["allow_network"] is True
    assert yaml.safe_load(lmms(*words, "--allow-network", "false").output)["allow_network"] is False
