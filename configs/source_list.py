"""A YAML file of sources: a list as under `sources`, or the file `datasets:` of LMMs-Engine as it is.

    - a.jsonl                                     datasets:
    - {path: b.parquet, form: alpaca}               - {path: c.json, data_folder: images, data_type: json}

Paths are relative to the working directory, as in a run file.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lmms.configs.errors import ConfigError, refuse_file_limit
from lmms.configs.settings.sources import SourceConfig
from lmms.configs.typed import build, check, missing_keys
from lmms.configs.yaml12 import parse_yaml

_ENDINGS = (".yaml", ".yml")
_HINT = tuple[SourceConfig | str, ...]


def expand_sources(sources: Sequence[SourceConfig | str]) -> list[SourceConfig]:
    """Each source as a mapping of settings; a source that is a YAML file gives the sources in the file.

    What an entry of the file does not set is as the source that names the file says. ConfigError for a file that cannot
    be read, or that is no list of sources.
    """
    configs = [SourceConfig(path=source) if isinstance(source, str) else source for source in sources]
    return [entry for config in configs for entry in (_read(config) if _is_list(config) else [config])]


def _is_list(config: SourceConfig) -> bool:
    return config.path.lower().endswith(_ENDINGS)


def _read(config: SourceConfig) -> list[SourceConfig]:
    entries = _entries(_parsed(config.path), config.path)
    nested = next((entry.path for entry in entries if _is_list(entry)), None)
    if nested:
        raise ConfigError(f"{config.path} names {nested}, another list of sources; name each list in the run file")
    return [_over(entry, config) for entry in entries]


def _entries(body: Any, origin: str) -> list[SourceConfig]:
    """The sources in the content of a YAML file. origin: name of the file, for a ConfigError."""
    is_theirs = isinstance(body, dict) and list(body) == ["datasets"]
    key = "datasets" if is_theirs else "sources"
    entries = body[key] if isinstance(body, dict) and list(body) == [key] else body
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"{origin}: expected a list of paths or {{path: ...}}, alone or under sources, or a list under datasets"
        )
    checked = check(_HINT, entries, key, origin)
    missing = list(missing_keys(_HINT, checked, key))
    if missing:
        raise ConfigError(f"{origin}: required but not set: {', '.join(missing)}")
    built = build(_HINT, checked)
    configs = [SourceConfig(path=entry) if isinstance(entry, str) else entry for entry in built]
    # There a missing folder, like an empty one, is the working directory.
    return [replace(c, data_folder="") if is_theirs and c.data_folder is None else c for c in configs]


def _parsed(file: str) -> Any:
    try:
        return parse_yaml(Path(file).expanduser().read_text(encoding="utf-8"), file)
    except OSError as error:
        refuse_file_limit(error)
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 (byte {error.start}): {error.reason}") from error


def _over(entry: SourceConfig, base: SourceConfig) -> SourceConfig:
    """The entry, with the settings of `base` where the entry sets none."""
    unset = {f.name: getattr(base, f.name) for f in fields(SourceConfig) if getattr(entry, f.name) is None}
    return replace(entry, **unset)
