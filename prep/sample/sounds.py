"""The sounds of a record: one channel at the rate of the model, as FLAC."""

from lmms.configs.contract.pack import Sound
from lmms.configs.words import counted
from lmms.prep.audio.decode import encoded_sound
from lmms.prep.media.pins import pinned
from lmms.prep.media.read import address_of, find_media
from lmms.prep.records.parts import Audio
from lmms.prep.reject import Reject
from lmms.prep.sample.pictures import Picture
from lmms.prep.sample.recipe import Recipe
from lmms.prep.sources import Source


def read_sound(audio: Audio, source: Source, recipe: Recipe) -> Picture:
    """A sound as the model hears it. Raises Reject, with the place of the part."""
    if recipe.audio is None:
        raise Reject("audio_unsupported", "the record has a sound, this model hears none", audio.place)
    try:
        return _read(audio, source, recipe)
    except Reject as reject:
        raise Reject(reject.reason, reject.message, audio.place) from None


def _read(audio: Audio, source: Source, recipe: Recipe) -> Picture:
    rule = recipe.audio
    assert rule is not None
    file = find_media(
        audio.ref, source.roots, "audio", network=recipe.network, beside=source.beside, looked=recipe.looked
    )
    most = rule.longest if recipe.cuts_sounds else None
    clip = (audio.start, audio.end)
    data, samples = encoded_sound(file, rule.sample_rate, recipe.sound_format, recipe.video_limits, *clip, most)
    given = f"{counted(samples, 'sample')} at {rule.sample_rate:,} a second"
    if samples > rule.longest:
        raise Reject(
            "audio_too_long",
            f"{given} ({samples / rule.sample_rate:.1f} s), the model hears {rule.longest:,}"
            f" ({rule.longest / rule.sample_rate:g} s); take a clip by audio_start and audio_end, or set"
            " audio_too_long=cut",
        )
    if rule.tokens(samples) < 1:
        raise Reject("audio_too_short", f"{given} give the model no token; expected more than 20 ms")
    address = address_of(audio.ref, source.beside)
    fetched = pinned(address, file, recipe.pins) if address and isinstance(file, bytes) else None
    return Picture(data, (0, 0), (0, 0, 0), fetched, sound=Sound(samples, tuple(rule.tower_chunks(samples))))
