"""Configuration: reads YAML files into desired resources, and reports all errors in the files at once."""

from __future__ import annotations

from scplan.config.configuration import Configuration, ContainerConfig, add_entry
from scplan.config.loading import configuration_from_json, default_paths, load

__all__ = [
    "Configuration",
    "ContainerConfig",
    "add_entry",
    "configuration_from_json",
    "default_paths",
    "load",
]
