"""What prep and train must agree on, and what a user may set. The ground floor: it imports nothing of ours above it."""

from typing import TYPE_CHECKING

from lmms.configs.lazy import lazy_names

if TYPE_CHECKING:
    from lmms.configs.contract.manifest import Dataset, Manifest
    from lmms.configs.contract.pack import Media, Pack
    from lmms.configs.errors import (
        BuildError,
        ConfigError,
        DatasetError,
        LmmsError,
        ModelError,
        SourceError,
        TrainError,
    )
    from lmms.configs.load import load_config, to_yaml
    from lmms.configs.settings.data import DataConfig
    from lmms.configs.settings.prep import PrepConfig
    from lmms.configs.settings.train import ModelConfig, TrainConfig

__all__ = [
    "BuildError",
    "ConfigError",
    "DataConfig",
    "Dataset",
    "DatasetError",
    "LmmsError",
    "Manifest",
    "Media",
    "ModelConfig",
    "ModelError",
    "Pack",
    "PrepConfig",
    "SourceError",
    "TrainConfig",
    "TrainError",
    "load_config",
    "to_yaml",
]

_ERRORS = ("BuildError", "ConfigError", "DatasetError", "LmmsError", "ModelError", "SourceError", "TrainError")

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(_ERRORS, "lmms.configs.errors"),
        **dict.fromkeys(("load_config", "to_yaml"), "lmms.configs.load"),
        **dict.fromkeys(("Dataset", "Manifest"), "lmms.configs.contract.manifest"),
        **dict.fromkeys(("Media", "Pack"), "lmms.configs.contract.pack"),
        "DataConfig": "lmms.configs.settings.data",
        "PrepConfig": "lmms.configs.settings.prep",
        **dict.fromkeys(("ModelConfig", "TrainConfig"), "lmms.configs.settings.train"),
    },
)
