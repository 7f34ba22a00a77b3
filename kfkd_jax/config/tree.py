"""Keys of a nested configuration by their dotted names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import ml_collections


class ConfigError(ValueError):
  """A configuration that cannot work: one line that names key and value."""


def names(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
  keys: list[str] = []
  for name in config:
    if is_section(config, name):
      keys += names(config[name], f"{prefix}{name}.")
    else:
      keys.append(prefix + name)
  return keys


def get(config: ml_collections.ConfigDict, key: str) -> Any:
  for name in key.split("."):
    config = config[name]
  return config


def get_type(config: ml_collections.ConfigDict, key: str) -> type | None:
  *sections, name = key.split(".")
  for section in sections:
    config = config[section]
  return config.get_type(name)


def is_section(node: Any, name: str) -> bool:
  return isinstance(node, ml_collections.ConfigDict) and isinstance(
    node.get(name), ml_collections.ConfigDict
  )


def unknown(key: str, known: Sequence[str]) -> ConfigError:
  """What to raise for a key that does not exist."""
  return ConfigError(
    f"config key {key!r} is unknown; did you mean {closest(key, known)}?"
  )


def closest(key: str, known: Sequence[str]) -> str:
  """The key with this last part or its initials, else the one most alike."""
  last = key.rpartition(".")[2]
  for other in known:
    part = other.rpartition(".")[2]
    initials = "".join(word[0] for word in part.split("_"))
    if last == part or (last == initials and len(last) > 1):
      return repr(other)
  close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
  return repr(close[0])
