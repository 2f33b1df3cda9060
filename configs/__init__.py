"""What prep and train must agree on, and what a user may set. The lowest package: no import of prep, train or cli."""

from typing import TYPE_CHECKING

from lmms.configs.lazy import lazy_names

if TYPE_CHECKING:
    from lmms.configs.contract.manifest import Dataset, Manifest
    from lmms.configs.contract.model_folder import ModelFolder, read_model_folder
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
    "ModelFolder",
    "Pack",
    "PrepConfig",
    "SourceError",
    "TrainConfig",
    "TrainError",
    "load_config",
    "read_model_folder",
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
        **dict.fromkeys(("ModelFolder", "read_model_folder"), "lmms.configs.contract.model_folder"),
        "DataConfig": "lmms.configs.settings.data",
        "PrepConfig": "lmms.configs.settings.prep",
        **dict.fromkeys(("ModelConfig", "TrainConfig"), "lmms.configs.settings.train"),
    },
)
