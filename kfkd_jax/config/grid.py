"""Several values of some keys: the axes of a sweep."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections

from kfkd_jax.config import reading, tree
from kfkd_jax.config.tree import ConfigError


class Axis(NamedTuple):
  """A key and the values it takes.

  Attributes:
    key: dotted.
    values: as text that `override` reads, one spelling a value.
  """

  key: str
  values: tuple[str, ...]


def parse_grid(
  texts: Sequence[str], config: ml_collections.ConfigDict
) -> tuple[Axis, ...]:
  """Reads `KEY=VALUE,VALUE,...`, one text an axis.

  A value that holds commas, such as a tuple, stands in parentheses.

  Args:
    texts: as on the command line.
    config: knows the keys and their types; it is not changed.

  >>> config = ml_collections.ConfigDict({"rate": 0.1, "kinds": ("a",)})
  >>> [
  ...   axis.values
  ...   for axis in parse_grid(["rate=.2,1", "kinds=(a,b),a"], config)
  ... ]
  [('0.2', '1.0'), ('a,b', 'a')]
  """
  axes: list[Axis] = []
  for text in texts:
    key, equals, rest = text.partition("=")
    if not equals or not rest.strip():
      raise ConfigError(f"--grid {text!r} must be KEY=VALUE,VALUE,...")
    if key in [axis.key for axis in axes]:
      raise ConfigError(f"--grid names {key} twice; give its values in one")
    if key == "seed":
      raise ConfigError("--grid takes no seed; --seeds says how many")
    values = [_spelling(config, key, part) for part in _split(text, rest)]
    for value in values:
      if values.count(value) > 1:
        raise ConfigError(f"--grid gives {key}={value} twice")
    axes.append(Axis(key, tuple(values)))
  return tuple(axes)


def _split(text: str, rest: str) -> list[str]:
  """Splits at commas outside parentheses, which are dropped."""
  parts, depth = [""], 0
  for letter in rest:
    depth += {"(": 1, ")": -1}.get(letter, 0)
    if depth < 0:
      break
    if letter == "," and depth == 0:
      parts.append("")
    else:
      parts[-1] += letter
  if depth:
    raise ConfigError(f"--grid {text!r} has a parenthesis without its other")
  parts = [part.strip() for part in parts]
  return [
    p[1:-1].strip() if p.startswith("(") and p.endswith(")") else p
    for p in parts
  ]


def _spelling(config: ml_collections.ConfigDict, key: str, text: str) -> str:
  """The one text for a value, however it was typed."""
  changed = copy.deepcopy(config)
  try:
    reading.override(changed, key, text)
  except ConfigError as error:
    raise ConfigError(f"--grid: {error}") from None
  value = tree.get(changed, key)
  return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
