"""A small image-question set, drawn here: a shape on a noisy ground. Only the pixels tell its colour and its form."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SIDE = 32
COLOURS = {"red": (214, 48, 49), "green": (0, 148, 80), "blue": (52, 101, 224), "yellow": (240, 196, 25)}
SHAPES = ("circle", "square", "triangle")
QUESTIONS = {"colour": "What colour is the shape?", "shape": "What shape is it?"}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, with its right answers: kind of question -> answer."""

    image: str
    """Path, relative to the record file."""
    answers: dict[str, str]

    def record(self) -> dict[str, object]:
        """The OpenAI-chat record: the picture, then one turn for each question."""
        messages: list[dict[str, object]] = []
        for kind, answer in self.answers.items():
            text = {"type": "text", "text": QUESTIONS[kind]}
            content = [text] if messages else [{"type": "image", "image": self.image}, text]
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        return {"messages": messages}


def draw_pictures(folder: Path, name: str, number: int, seed: int) -> list[Picture]:
    """Draw `number` pictures into folder/name/ and write folder/name.jsonl. The same seed draws the same set."""
    (folder / name).mkdir(parents=True)
    pictures = list(_pictures(folder, name, number, random.Random(f"{name} {seed}")))
    lines = [json.dumps(picture.record()) + "\n" for picture in pictures]
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return pictures


def _pictures(folder: Path, name: str, number: int, rng: random.Random) -> Iterator[Picture]:
    for i in range(number):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        path = f"{name}/{i:04d}.png"
        _draw(colour, shape, rng).save(folder / path)
        answers = [("colour", colour), ("shape", shape)]
        rng.shuffle(answers)
        yield Picture(path, dict(answers))


def _draw(colour: str, shape: str, rng: random.Random) -> "Image.Image":
    from PIL import Image, ImageDraw

    ground = rng.randrange(200, 256)
    image = Image.new("RGB", (SIDE, SIDE), (ground, ground, ground))
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        shade = rng.randrange(170, 256)
        draw.point((rng.randrange(SIDE), rng.randrange(SIDE)), (shade, shade, shade))
    size = rng.randrange(19, 28)
    x, y = rng.randrange(2, SIDE - size - 2), rng.randrange(2, SIDE - size - 2)
    fill = tuple(max(0, min(255, c + rng.randrange(-20, 21))) for c in COLOURS[colour])
    box = (x, y, x + size, y + size)
    if shape == "circle":
        draw.ellipse(box, fill)
    elif shape == "square":
        draw.rectangle(box, fill)
    else:
        draw.polygon([(x + size // 2, y), (x, y + size), (x + size, y + size)], fill)
    return image
