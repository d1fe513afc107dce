"""Configuration: files to desired resources, with all that is wrong in them said at once."""

from __future__ import annotations

from scplan.config.configuration import Configuration, ContainerConfig, add_entry
from scplan.config.loading import Outline, collide, configuration_from_json, default_paths, load, outline
from scplan.config.schema import configuration_schema

__all__ = [
    "Configuration",
    "ContainerConfig",
    "Outline",
    "add_entry",
    "collide",
    "configuration_from_json",
    "configuration_schema",
    "default_paths",
    "load",
    "outline",
]
