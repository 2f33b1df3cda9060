"""The media of a record as a model sees them: pictures, and the rows of videos, in the order of the text."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmms.configs.contract.geometry import grid_patches, grid_tokens
from lmms.configs.contract.video import row_time
from lmms.prep.media.pins import Fetched
from lmms.prep.records.parts import Image, Video
from lmms.prep.sample.pictures import Picture, read_picture
from lmms.prep.sample.recipe import Recipe
from lmms.prep.sample.videos import read_video
from lmms.prep.sources import Source


@dataclass(frozen=True, slots=True)
class Shown:
    """What each image or video of a record became: a picture, or the rows of a video."""

    media: Sequence[tuple[Picture, ...]]
    merge_size: int

    @property
    def pictures(self) -> list[Picture]:
        """All pictures and rows."""
        return [picture for medium in self.media for picture in medium]

    @property
    def tokens(self) -> list[int]:
        """The tokens of each of `pictures`."""
        return [grid_tokens(picture.grid_thw, self.merge_size) for picture in self.pictures]

    @property
    def patches(self) -> int:
        """Patches of all pictures."""
        return sum(grid_patches(picture.grid_thw) for picture in self.pictures)

    @property
    def clips(self) -> list[list[float]]:
        """The time of each row of each video."""
        return [[row_time(p.row.seconds) for p in medium if p.row] for medium in self.media if medium[0].row]

    @property
    def stills(self) -> list[Picture]:
        """The pictures that are no rows of videos."""
        return [medium[0] for medium in self.media if medium[0].row is None]

    @property
    def fetched(self) -> frozenset[Fetched]:
        """What came over the network."""
        return frozenset(picture.fetched for picture in self.pictures if picture.fetched)

    def first(self, number: int) -> "Shown":
        """The first images and videos, as many as this."""
        return Shown(self.media[:number], self.merge_size)


def read_media(media: Sequence[Image | Video], source: Source, recipe: Recipe) -> Shown:
    """The media of a record, read; none for a model that has no eyes, whose template rejects them. Raises Reject."""
    if recipe.vision is None:
        return Shown((), 1)
    read = [
        read_video(each, source, recipe) if isinstance(each, Video) else (read_picture(each, source, recipe),)
        for each in media
    ]
    return Shown(read, recipe.vision.merge_size)
