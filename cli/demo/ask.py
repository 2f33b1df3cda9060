"""Put questions to an exported model: greedy answers through transformers' own generate."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText

from lmms.cli.demo.draw import QUESTIONS, SIDE, Picture
from lmms.configs.contract.media.geometry import grid_tokens, image_grid
from lmms.configs.contract.model_folder import ModelFolder, read_model_folder
from lmms.configs.contract.pack import Media
from lmms.prep.render.template import compile_template
from lmms.train.batch.images import image_patches, normalised, pixel_constants

_LONGEST_ANSWER = 8


def ask(model: Path, folder: Path, pictures: Sequence[Picture]) -> list[dict[str, str]]:
    """The model's answer to every kind of question about each picture; their paths are relative to `folder`."""
    about = read_model_folder(model)
    tokenizer = Tokenizer.from_file(str(about.tokenizer_json))
    hf = AutoModelForImageTextToText.from_pretrained(model).eval()
    images = [folder / picture.image for picture in pictures]
    # One batch for each question: all prompts in it have the same length, so nothing is padded.
    answers = {kind: _generate(hf, about, tokenizer, question, images) for kind, question in QUESTIONS.items()}
    return [{kind: answers[kind][i] for kind in QUESTIONS} for i in range(len(pictures))]


@torch.no_grad()
def _generate(
    hf: torch.nn.Module, about: ModelFolder, tokenizer: Tokenizer, question: str, images: Sequence[Path]
) -> list[str]:
    assert about.vision is not None
    grid = image_grid(SIDE, SIDE, about.vision)
    prompt = compile_template(about.chat_template).template.render(
        messages=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
        add_generation_prompt=True,
    )
    tokens = grid_tokens(grid, about.vision.merge_size)
    ids = tokenizer.encode(prompt.replace("<|image_pad|>", "<|image_pad|>" * tokens), add_special_tokens=False).ids
    patches = [
        torch.from_numpy(image_patches(data, Media("image", 0, tokens, (SIDE, SIDE), grid, len(data)), about.vision))
        for data in (path.read_bytes() for path in images)
    ]
    input_ids = torch.tensor([ids] * len(images))
    constants = pixel_constants(about.vision)
    output = hf.generate(  # type: ignore[operator]
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        mm_token_type_ids=input_ids.eq(about.image_token_id or 0).int(),
        pixel_values=normalised(torch.cat(patches), constants, about.vision.temporal_patch_size),
        image_grid_thw=torch.tensor([grid] * len(images)),
        max_new_tokens=_LONGEST_ANSWER,
        do_sample=False,
    )
    return [tokenizer.decode(row).strip() for row in output[:, len(ids) :].tolist()]
