"""The record several times: what is drawn behind this transform differs from copy to copy."""

from collections.abc import Sequence

from lmms.configs.settings.transforms import Variants
from lmms.prep.records.record import Record
from lmms.prep.transforms.transform import Context


def apply(record: Record, settings: Variants, _context: Context) -> Sequence[Record]:
    """`count` equal records."""
    return [record] * settings.count
