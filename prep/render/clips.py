"""The places of videos in a conversation: one placeholder of the template becomes the placeholders of all rows.

What stands around the rows differs from family to family, see Family.clip.
"""

from collections.abc import Sequence
from dataclasses import replace

from lmms.prep.render.layout import Layout
from lmms.prep.render.renderer import Renderer


def with_clips(renderer: Renderer, layout: Layout, clips: Sequence[Sequence[float]]) -> Layout:
    """The layout with a placeholder for each row of its videos. clips: the time of each row, in seconds, of each video.

    What is written between rows joins the text beside it, as in the processor's text before it is tokenized.
    """
    clip = renderer.family.clip
    if not clips or clip is None:
        return layout
    remaining = iter(clips)
    pieces = layout.pieces[:1]
    place = [0]
    """Place of each piece of the layout among the new pieces."""
    for control, text in zip(layout.pieces[1::2], layout.pieces[2::2], strict=True):
        place.append(len(pieces))
        if control == renderer.video:
            first, *middle, last = clip(next(remaining))
            pieces[-1] += first
            pieces += [*middle, last + text]
        else:
            pieces += [control, text]
        place.append(len(pieces) - 1)
    learned = [replace(turn, first=place[turn.first], end=place[turn.end]) for turn in layout.learned]
    return replace(layout, pieces=pieces, learned=learned, frame=None)
