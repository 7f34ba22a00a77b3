"""What a key's value may be: a sentence and a test of it."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MAX_COUNT = 2**31 - 1


class Range(NamedTuple):
  """Allowed values.

  Attributes:
    allowed: what fits, in words.
    fits: whether a value does.
  """

  allowed: str
  fits: Callable[[Any], bool]


ANY = Range("anything", lambda v: True)


def at_least(low: int) -> Range:
  return Range(f"{low} or more", lambda v: low <= v <= MAX_COUNT)


def between(low: float, high: float) -> Range:
  return Range(f"{low:g} to {high:g}", lambda v: low <= v <= high)


def one_of(choices: Sequence[str]) -> Range:
  return Range(", ".join(choices), lambda v: v in choices)


def some_of(choices: Sequence[str]) -> Range:
  return Range(
    f"a tuple of {', '.join(choices)}, each at most once",
    lambda v: all(v.count(name) == 1 and name in choices for name in v),
  )


def ascending(low: float, high: float) -> Range:
  return Range(
    f"two ascending numbers from {low:g} to {high:g}",
    lambda v: _are_numbers(v, 2) and low <= v[0] <= v[1] <= high,
  )


WEIGHTS = Range(
  "two numbers, 0 or more", lambda v: _are_numbers(v, 2) and min(v) >= 0
)
RATES = Range(
  "two numbers from 0 to 1, the higher first",
  lambda v: _are_numbers(v, 2) and 1 >= v[0] >= v[1] >= 0 and v[0] > 0,
)
SHARES = Range(
  "ascending shares of the run between 0 and 1",
  lambda v: (
    _are_numbers(v, len(v))
    and all(0 < b < 1 for b in v)
    and list(v) == sorted(set(v))
  ),
)


def _are_numbers(values: Any, count: int) -> bool:
  """Whether all are finite numbers; True is none, whatever Python says."""
  most = sys.float_info.max
  return len(values) == count and all(
    type(v) in (int, float) and -most <= v <= most for v in values
  )


def shown(value: Any) -> str:
  """`repr`, shortened; a whole number of thousands of digits has none."""
  try:
    return reprlib.repr(value)
  except ValueError:
    return "a number of thousands of digits"
