"""The media of a record as a model takes them: pictures, rows of videos, and sounds, in the order of the text."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmms.configs.contract.media.video import row_time
from lmms.prep.media.pins import Fetched
from lmms.prep.records.parts import Audio, Medium, Video
from lmms.prep.reject import Reject
from lmms.prep.sample.pictures import Picture, read_picture
from lmms.prep.sample.recipe import Recipe
from lmms.prep.sample.sounds import read_sound
from lmms.prep.sample.videos import read_video
from lmms.prep.sources import Source


@dataclass(frozen=True, slots=True)
class Shown:
    """What each image, video or sound of a record became: one piece, or the rows of a video."""

    media: Sequence[tuple[Picture, ...]]
    recipe: Recipe

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, rows and sounds."""
        return [picture for medium in self.media for picture in medium]

    @property
    def tokens(self) -> list[int]:
        """The tokens of each of `pictures`."""
        return [picture.tokens(self.recipe) for picture in self.pictures]

    @property
    def tower_positions(self) -> int:
        """Patches of all pictures, and positions of all sounds."""
        return sum(picture.tower_positions for picture in self.pictures)

    @property
    def clips(self) -> list[list[float]]:
        """The time of each row of each video."""
        return [[row_time(p.row.seconds) for p in medium if p.row] for medium in self.media if medium[0].row]

    @property
    def stills(self) -> list[Picture]:
        """The pictures that are no rows of videos."""
        return [medium[0] for medium in self.media if medium[0].kind == "image"]

    @property
    def fetched(self) -> frozenset[Fetched]:
        """What came over the network."""
        return frozenset(picture.fetched for picture in self.pictures if picture.fetched)

    def first(self, number: int) -> "Shown":
        """The first images, videos and sounds, as many as this."""
        return Shown(self.media[:number], self.recipe)


def read_media(media: Sequence[Medium], source: Source, recipe: Recipe) -> Shown:
    """The media of a record, read; none for a model of text alone, whose template rejects them. Raises Reject."""
    if recipe.vision is None and recipe.audio is None:
        return Shown((), recipe)
    return Shown([_read(each, source, recipe) for each in media], recipe)


def _read(medium: Medium, source: Source, recipe: Recipe) -> tuple[Picture, ...]:
    if isinstance(medium, Audio):
        return (read_sound(medium, source, recipe),)
    if isinstance(medium, Video):
        return read_video(medium, source, recipe)
    if recipe.vision is None:
        raise Reject("images_unsupported", "the record has an image, this model reads none", medium.place)
    return (read_picture(medium, source, recipe),)
