"""What does not fit a pack: a document is cut in pieces, a conversation after a turn, or the record is rejected."""

from bisect import bisect_left

from lmms.configs.contract.check import PackLimits
from lmms.configs.settings.sources import TooLong
from lmms.prep.records.document import Document
from lmms.prep.records.record import Record
from lmms.prep.reject import Reject
from lmms.prep.render.document import Piece, cut_document, render_document
from lmms.prep.render.render import Rendered, render_record
from lmms.prep.render.renderer import Renderer
from lmms.prep.sample.cut import first_messages, learned_ends
from lmms.prep.sample.recipe import Recipe
from lmms.prep.sample.shown import Shown

_FURTHER = 8
"""Beginnings of a conversation that are tried beyond the first that does not fit."""


def document_pieces(
    document: Document,
    shown: Shown,
    too_long: TooLong,
    renderer: Renderer,
    recipe: Recipe,
) -> list[Piece]:
    whole = render_document(renderer, document, shown.tokens)
    if fits(whole, shown, recipe.limits):
        return [Piece(whole, (0, len(shown.pictures)))]
    if too_long == "reject" or not document.may_split:
        raise _too_long(whole, shown, recipe.limits, "")
    most = (recipe.limits.seq_len, recipe.limits.max_patches)
    patches = [picture.tower_positions for picture in shown.pictures]
    return list(cut_document(whole, shown.tokens, patches, most, recipe.text_overlap))


def cut_turns(
    record: Record,
    shown: Shown,
    whole: Rendered,
    too_long: TooLong,
    renderer: Renderer,
    recipe: Recipe,
) -> tuple[Record, Rendered]:
    """The longest beginning of a record that fits a pack, if the settings allow that, with its rendering."""
    if too_long != "truncate_turns":
        raise _too_long(whole, shown, recipe.limits, record.place)

    def beginning(end: int) -> tuple[Record, Rendered]:
        kept = first_messages(record, end)
        of_kept = shown.first(len(kept.media))
        return kept, render_record(renderer, kept, of_kept.tokens, of_kept.clips)

    def is_longer(end: int) -> bool:
        kept, shorter = beginning(end)
        return not fits(shorter, shown.first(len(kept.media)), recipe.limits)

    ends = learned_ends(record)
    first = bisect_left(ends, True, key=is_longer)
    # A template may drop reasoning once a question follows, so a longer beginning may have fewer tokens.
    fitting = next(
        (i for i in range(min(len(ends), first + _FURTHER) - 1, first - 1, -1) if not is_longer(ends[i])), None
    )
    if fitting is None and not first:
        raise _too_long(whole, shown, recipe.limits, record.place)
    return beginning(ends[first - 1 if fitting is None else fitting])


def fits(rendered: Rendered, shown: Shown, limits: PackLimits) -> bool:
    return len(rendered.input_ids) <= limits.seq_len and shown.tower_positions <= limits.max_patches


def _too_long(rendered: Rendered, shown: Shown, limits: PackLimits, place: str) -> Reject:
    tokens, patches = len(rendered.input_ids), shown.tower_positions
    advice = "; smaller: video_max_pixels, fewer frames: video_fps or video_max_frames" if shown.clips else ""
    if tokens > limits.seq_len:
        return Reject("too_long", f"{tokens} tokens, a pack holds {limits.seq_len}{advice}", place)
    heard = " and positions of sounds" if any(picture.sound for picture in shown.pictures) else ""
    return Reject("too_many_patches", f"{patches} patches{heard}, a pack holds {limits.max_patches}{advice}", place)
