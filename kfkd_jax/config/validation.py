"""Whether a configuration can work: structure, types, ranges, pairs."""

from __future__ import annotations

from typing import Any

import ml_collections

from kfkd_jax.config import pairs, tree
from kfkd_jax.config.keys import BY_NAME, KEYS, default_config
from kfkd_jax.config.ranges import shown
from kfkd_jax.config.tree import ConfigError


def validate(config: ml_collections.ConfigDict) -> None:
  """Raises a `ConfigError` naming the first key that cannot work."""
  _check_structure(config)
  for key in KEYS:
    value = tree.get(config, key.name)
    if value is None and key.kind is not None:
      continue
    if not key.range.fits(value):
      raise ConfigError(
        f"{key.name}={shown(value)} is not possible; allowed: "
        f"{key.range.allowed}"
      )
  pairs.check(config)


def _check_structure(config: ml_collections.ConfigDict) -> None:
  reference = default_config()
  try:
    given = tree.names(config)
  except TypeError as error:  # ml_collections sorts, and takes numbers as keys
    raise ConfigError(f"config keys must be names: {error}") from error
  for name in given:
    if name not in BY_NAME:
      raise tree.unknown(name, list(BY_NAME))
  for name in BY_NAME:
    if name not in given:
      raise ConfigError(
        f"config key {name!r} is missing; start from default_config()"
      )
    check_type(name, tree.get(config, name), tree.get_type(reference, name))


def check_type(name: str, value: Any, expected: type | None) -> None:
  """Raises a `ConfigError` unless `value` has the type of the key `name`."""
  key = BY_NAME.get(name)
  if value is None and key is not None and key.kind is not None:
    return
  if expected is float and type(value) is int:
    return
  if expected is tuple and isinstance(value, list):
    return
  if expected is not None and type(value) is not expected:
    raise ConfigError(
      f"{name}={shown(value)} has type {type(value).__name__}; it must be "
      f"{expected.__name__}"
    )
