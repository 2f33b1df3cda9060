"""Transforms: pure functions Record -> Record(s), seeded by the build's seed, the source and the row.

The table names them; their settings are in configs/settings/transforms.py. `join` is not among them, since it takes
several records: see prep/sample/joining.py.
"""

from collections.abc import Callable, Mapping, Sequence

from lmms.configs.settings.transforms import (
    AUGMENTATIONS,
    ColorJitter,
    Function,
    HorizontalFlip,
    Pad,
    PadToMultiple,
    Prompts,
    Rotate,
    Scale,
    Summary,
    Transform,
    Variants,
    VerticalFlip,
)
from lmms.prep.records.parts import Image
from lmms.prep.records.record import Record
from lmms.prep.transforms import function, pictures, prompts, summary, variants
from lmms.prep.transforms.pictures import of_pictures
from lmms.prep.transforms.transform import Apply, Context, Draws

TRANSFORMS: Mapping[type[Transform], Apply] = {
    Variants: variants.apply,
    Prompts: prompts.apply,
    Summary: summary.apply,
    HorizontalFlip: of_pictures(pictures.hflip),
    VerticalFlip: of_pictures(pictures.vflip),
    Rotate: of_pictures(pictures.rotate),
    Scale: of_pictures(pictures.scale),
    ColorJitter: of_pictures(pictures.color_jitter),
    Pad: of_pictures(pictures.pad),
    PadToMultiple: of_pictures(pictures.pad_to_multiple),
    Function: function.apply,
}


def transformed(
    record: Record,
    transforms: Sequence[Transform],
    key: tuple[str | int, ...],
    measured: Callable[[Image], Image],
    held_out: bool = False,
) -> list[Record]:
    """The records that take the place of a record, after all transforms in order.

    key: seed of the build, name of the source, row. measured: see Context. held_out: for evaluation, without
    AUGMENTATIONS. Raises Reject.
    """
    records = [(record, key)]
    for number, settings in enumerate(transforms):
        if held_out and isinstance(settings, AUGMENTATIONS):
            continue
        records = [
            (made, (*path, copy))
            for before, path in records
            for copy, made in enumerate(
                TRANSFORMS[type(settings)](before, settings, Context(Draws((*path, "step", number)), measured))
            )
        ]
    return [made for made, _ in records]
