"""The pictures of a record: their bytes, their size, and the grid of their patches."""

from dataclasses import dataclass, replace

from lmms.configs.contract.media.geometry import grid_patches, grid_tokens
from lmms.configs.contract.pack import Row, Sound
from lmms.prep.media.edit import edited
from lmms.prep.media.pins import Fetched, pinned
from lmms.prep.media.read import MediaRef, address_of, read_image
from lmms.prep.media.resize import picture_grid, with_areas
from lmms.prep.media.verified import verified_size
from lmms.prep.records.parts import Image
from lmms.prep.reject import Reject
from lmms.prep.sample.recipe import Recipe
from lmms.prep.sources import Source


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, a row of a video (all frames that the vision tower reads together), or a sound."""

    data: bytes
    size: tuple[int, int]
    grid_thw: tuple[int, int, int]
    fetched: Fetched | None
    """The file as it came over the network, before any edit."""
    row: Row | None = None
    """The row of a video that this is."""
    sound: Sound | None = None
    """The sound that this is; then size and grid are 0."""

    @property
    def kind(self) -> str:
        """Kind of media, as in a pack."""
        return "audio" if self.sound else "video" if self.row else "image"

    @property
    def tower_positions(self) -> int:
        """Patches, or positions of a sound: what a tower reads."""
        return sum(self.sound.chunks) if self.sound else grid_patches(self.grid_thw)

    def tokens(self, recipe: Recipe) -> int:
        """Tokens of the language model."""
        if self.sound is None:
            return grid_tokens(self.grid_thw, recipe.limits.merge_size)
        assert recipe.audio is not None
        return recipe.audio.tokens(self.sound.samples)


def measured(image: Image, source: Source, recipe: Recipe) -> Image:
    """The picture with its bytes and its size. Raises Reject."""
    if image.size is not None:
        return image
    try:
        data = read_image(image.ref, source.roots, network=recipe.network, beside=source.beside, looked=recipe.looked)
        address = address_of(image.ref, source.beside)
        fetched = None if address is None else pinned(address, data, recipe.pins)
        size = verified_size(data, recipe.verify_media, recipe.max_image_pixels)
    except Reject as reject:
        raise Reject(reject.reason, reject.message, image.place) from None
    return replace(image, ref=MediaRef("bytes", data), size=size, fetched=fetched)


def read_picture(image: Image, source: Source, recipe: Recipe) -> Picture:
    assert recipe.vision is not None
    image = measured(image, source, recipe)
    data, size = image.ref.value, image.size
    assert isinstance(data, bytes)
    assert size is not None
    fetched = None if image.fetched is None else replace(image.fetched, size=size)
    try:
        if image.edits:
            data, size = edited(data, image.edits, recipe.edited_jpeg_quality)
        vision = with_areas(recipe.vision, source.reading.min_pixels, source.reading.max_pixels)
        grid_thw = picture_grid(size[1], size[0], vision, image.ask)
    except Reject as reject:
        raise Reject(reject.reason, reject.message, image.place) from None
    return Picture(data, size, grid_thw, fetched)
