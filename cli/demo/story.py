"""The steps of `lmms demo`: draw, prepare, look, train, kill, resume, export, ask."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.columns import Columns
from rich.console import Console, Group
from rich.text import Text

from lmms.cli import ui
from lmms.cli.demo.draw import QUESTIONS, Picture, draw_pictures
from lmms.configs.errors import ConfigError, TrainError
from lmms.configs.load import to_yaml
from lmms.configs.settings.data import DataConfig
from lmms.configs.settings.memory import MemoryConfig
from lmms.configs.settings.optim import OptimConfig
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.train import ModelConfig, TrainConfig
from lmms.configs.words import counted

MODEL = Path(__file__).parent / "model"
TRAIN_PICTURES, TEST_PICTURES = 3000, 100
STEPS, SAVE_STEPS, KILL_AFTER = 360, 90, 120
NEEDED = 0.9
"""Share of held-out questions that must be answered right."""
_THUMBNAIL, _SHOWN = 14, 5


def demo(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep all files in this new folder; by default they are deleted.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the pictures, the order and the weights.")] = 0,
) -> None:
    """Show the whole way in a few minutes: draw, prepare, train, kill, resume, export, ask.

    Example: lmms demo --out demo/
    """
    start = time.monotonic()
    screen = ui.console()
    if out is not None:
        if out.exists():
            raise ConfigError(f"{out} exists; remove it or name another folder")
        out.mkdir(parents=True)
        right = _tell(screen, out, seed)
    else:
        with tempfile.TemporaryDirectory(prefix="lmms-demo-") as folder:
            right = _tell(screen, Path(folder), seed)
    seconds = ui.duration(time.monotonic() - start)
    verdict = f"{right:.1%} of the answers about unseen pictures are right, after {seconds}"
    screen.print(f"[bold {'green' if right >= NEEDED else 'red'}]{verdict}[/]")
    kept = f"all of it is in {out}" if out else "--out DIR keeps what was made"
    screen.print(f"[dim]{kept}; next: records of your own, see docs/records.md[/]")
    if right < NEEDED:
        raise TrainError(f"the demo's model answers {right:.0%}, expected {NEEDED:.0%}: something is broken here")


def _tell(screen: Console, folder: Path, seed: int) -> float:
    _stage(screen, 1, "draw", f"{TRAIN_PICTURES:,} pictures with two questions each, and {TEST_PICTURES} held out")
    pictures = draw_pictures(folder, "train", TRAIN_PICTURES, seed)
    held_out = draw_pictures(folder, "test", TEST_PICTURES, seed)
    _show_pictures(screen, folder, pictures, [picture.answers for picture in pictures])

    _stage(screen, 2, "prepare", "lmms prep build-shards train.jsonl --seq-len 1024")
    _prepare(screen, folder, seed)

    _stage(screen, 3, "look", "lmms inspect shard shards --pack 0 (its first conversation)")
    _look(screen, folder)

    config = _run_config(folder, seed)
    (folder / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    _stage(screen, 4, "train", f"lmms train --config run.yaml, and kill -9 after step {KILL_AFTER}")
    _train(screen, folder, "train", kill_after=KILL_AFTER)

    _stage(screen, 5, "resume", "the same command again")
    _train(screen, folder, "resume", kill_after=None)

    _stage(screen, 6, "export", f"lmms export run/step-{STEPS:08d} model")
    from transformers.utils import logging

    from lmms.train.checkpoint.export import export

    logging.disable_progress_bar()
    export(folder / "run" / f"step-{STEPS:08d}", folder / "model", "fp32")

    _stage(screen, 7, "ask", f"two questions about each of {TEST_PICTURES} pictures that the model has not seen")
    return _ask(screen, folder, held_out)


def _stage(screen: Console, number: int, name: str, what: str) -> None:
    screen.print(f"\n[bold cyan]{number} {name}[/]  [dim]{what}[/]", soft_wrap=True)


def _prepare(screen: Console, folder: Path, seed: int) -> None:
    from lmms.prep.build import build_shards

    source = str(folder / "train.jsonl")
    config = PrepConfig(
        sources=(source,), model=str(MODEL), seq_len=1024, out=str(folder / "shards"), seed=seed, workers=0
    )
    manifest = build_shards(config)
    counts = manifest.counts
    sums = f"{counts['read']:,} records = {counts['packed']:,} packed + {counts['rejected']} rejected"
    screen.print(
        f"  {sums}; {counts['tokens']:,} tokens in {counted(counts['packs'], 'pack')}, {manifest.fill:.1%} full"
    )


def _look(screen: Console, folder: Path) -> None:
    from tokenizers import Tokenizer

    from lmms.cli.inspect.shard import segment_text
    from lmms.configs.contract.manifest import open_dataset
    from lmms.train.data.shards import PackReader, read_sidecar
    from lmms.train.data.view import pack_segments

    dataset = open_dataset(folder / "shards")
    pack = PackReader([dataset]).read(read_sidecar(dataset).place(0))
    segment = next(pack_segments(pack, dataset.manifest))
    screen.print(segment_text(pack, segment, Tokenizer.from_file(str(MODEL / "tokenizer.json"))))


def _run_config(folder: Path, seed: int) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(path=str(MODEL), init="random"),
        memory=MemoryConfig(recompute="none"),
        data=DataConfig(shards=str(folder / "shards"), global_packs=1, workers=1),
        optim=OptimConfig(lr={"default": 3e-3}, warmup_steps=30, weight_decay=0.01),
        output=str(folder / "run"),
        max_steps=STEPS,
        save_steps=SAVE_STEPS,
        seed=seed,
        device="cpu",
    )


def _train(screen: Console, folder: Path, name: str, kill_after: int | None) -> None:
    """`lmms train` in a new process, watched by its metrics; killed without warning after step `kill_after`, if any."""
    from lmms.train.watch.metrics import metrics_lines

    run, log = folder / "run", folder / f"{name}.log"
    command = [sys.executable, "-m", "lmms.cli", "train", "--config", str(folder / "run.yaml")]
    before = metrics_lines(run)
    with log.open("w") as file, ui.progress(screen, "steps") as show:
        # One thread: a model this small is no faster with two, and far slower when the threads wait for a busy core.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            time.sleep(0.2)
            steps = metrics_lines(run)
            if steps and steps != before:
                show(name, steps[-1]["step"], STEPS, f"loss {steps[-1]['loss']:.3f}")
            if kill_after and steps and steps[-1]["step"] >= kill_after:
                process.kill()
                process.wait()
    if kill_after and process.returncode == -signal.SIGKILL:
        saved = sorted(path.name for path in run.glob("step-????????"))
        screen.print(
            f"  [red]killed[/] after step {metrics_lines(run)[-1]['step']}; complete checkpoints: {', '.join(saved)}"
        )
    elif process.returncode:
        raise TrainError(f"{' '.join(command)} ended with status {process.returncode}:\n{log.read_text()[-2000:]}")
    else:
        resumed = next(line for line in log.read_text().splitlines() if line.startswith("resumed from"))
        screen.print(f"  {resumed.replace(str(folder) + os.sep, '')}; loss {metrics_lines(run)[-1]['loss']:.3f}")


def _ask(screen: Console, folder: Path, held_out: Sequence[Picture]) -> float:
    """Share of right answers."""
    from lmms.cli.demo.ask import ask

    answers_of_model = ask(folder / "model", folder, held_out)
    _show_pictures(screen, folder, held_out, answers_of_model)
    right = 0
    for kind, question in QUESTIONS.items():
        hits = sum(p.answers[kind] == answers[kind] for p, answers in zip(held_out, answers_of_model, strict=True))
        screen.print(f"  {question:<26} {hits} of {len(held_out)} right")
        right += hits
    return right / (len(QUESTIONS) * len(held_out))


def _show_pictures(
    screen: Console, folder: Path, pictures: Sequence[Picture], answers: Sequence[dict[str, str]]
) -> None:
    """The first pictures with their answers: green if right."""
    cells = []
    for picture, said in list(zip(pictures, answers, strict=True))[:_SHOWN]:
        lines = [
            Text(said[kind], style="green" if said[kind] == picture.answers[kind] else "red") for kind in QUESTIONS
        ]
        thumbnail = [_thumbnail(folder / picture.image)] if screen.is_terminal else []
        cells.append(Group(*thumbnail, *lines))
    screen.print(Columns(cells, padding=(0, 3)))


def _thumbnail(path: Path) -> Text:
    """A picture in half blocks: each character is two pixels, one above the other."""
    from PIL import Image

    image = Image.open(path).convert("RGB").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    pixels = [[f"rgb{image.getpixel((x, y))}".replace(" ", "") for x in range(_THUMBNAIL)] for y in range(_THUMBNAIL)]
    text = Text()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", style=f"{above} on {below}")
        text.append("\n")
    text.rstrip()
    return text
