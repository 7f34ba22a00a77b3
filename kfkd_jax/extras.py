"""Packages that an extra of this one brings, named where one is missing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

_INSTALLED_AS = {"PIL": "pillow", "sklearn": "scikit-learn"}


class MissingExtraError(ModuleNotFoundError):
  """A package is not installed that an extra would bring."""


@contextlib.contextmanager
def named() -> Iterator[None]:
  """Says how to install what cannot be imported, if an extra brings it.

  Raises:
    MissingExtraError: with that line.
  """
  try:
    yield
  except ImportError as error:
    # What a library imports on demand is the cause of an error of its own.
    for missing in (error, error.__cause__):
      if isinstance(missing, ModuleNotFoundError) and missing.name:
        extra = _extra_of(missing.name)
        if extra is not None:
          # Pip takes the one that is installed, from wherever it came.
          raise MissingExtraError(
            f"{missing.name} is not installed: pip install 'kfkd-jax[{extra}]'",
            name=missing.name,
          ) from error
    raise


def _extra_of(module: str) -> str | None:
  """The extra that brings `module`; None for what comes by itself or never."""
  from importlib import metadata  # takes its time to load

  wanted = _normal(_INSTALLED_AS.get(module, module))
  try:
    requirements = metadata.requires("kfkd-jax") or []
  except metadata.PackageNotFoundError:  # a copy that nobody installed
    return None
  for requirement in requirements:
    # Such as `scikit-learn>=1.5.2; extra == "run"`.
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    if _normal(name) == wanted:
      extra = re.search(r"extra == ['\"]([\w-]+)", requirement)
      return extra and extra[1]
  return None


def _normal(name: str) -> str:
  return re.sub(r"[-_.]+", "-", name).lower()
