"""The settings of a build that turn a record into samples."""

from dataclasses import dataclass, field
from typing import Literal

from lmms.configs.contract.check import PackLimits
from lmms.configs.contract.media.geometry import Vision
from lmms.configs.contract.media.sounds import Audio
from lmms.configs.contract.media.video import VideoRule
from lmms.prep.audio.facts import SoundFormat
from lmms.prep.media.network import Network
from lmms.prep.media.pins import Pins
from lmms.prep.media.read import Looked
from lmms.prep.sample.frame_prices import FramePrices
from lmms.prep.video.facts import Backend, FrameFormat, VideoLimits


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Settings that turn a record into a sample, the same for every record of a build."""

    limits: PackLimits
    vision: Vision | None
    verify_media: Literal["header", "structure", "decode"]
    max_image_pixels: int
    text_overlap: int
    """Tokens at the end of a piece of a document that the next piece begins with, as context."""
    seed: int = 0
    """Decides what transforms draw."""
    edited_jpeg_quality: int | None = None
    """Quality of the JPEGs that edited pictures become; None: PNG."""
    network: Network | None = None
    """How images are fetched that records name by http; None: they are rejected."""
    looked: Looked = field(default_factory=Looked, compare=False)
    """What was looked for on the disk for the chunk at hand."""
    video: VideoRule | None = None
    """None for a model that reads no videos."""
    video_backend: Backend = "auto"
    video_limits: VideoLimits = field(default_factory=VideoLimits)
    """For sounds too."""
    frame_format: FrameFormat = field(default_factory=FrameFormat)
    """How the frames of videos are kept."""
    resizes_frames: bool = True
    """Whether frames are kept as the model sees them, or as they were."""
    prices: FramePrices | None = field(default=None, compare=False)
    """Videos of the chunk at hand, measured in all forms of frames; None: they are not measured."""
    audio: Audio | None = None
    """None for a model that hears nothing."""
    sound_format: SoundFormat = field(default_factory=SoundFormat)
    cuts_sounds: bool = False
    """Whether sounds longer than the model hears are cut, or rejected."""
    pins: Pins = field(default_factory=dict)
    """Pictures of an earlier build: what is fetched has to be the same."""
