"""What a key means, for who asks by `kfkd help`."""

from __future__ import annotations

from collections.abc import Sequence

from kfkd_jax.config import tree
from kfkd_jax.config.keys import BY_NAME, KEYS, Following, Key


def explain(names: Sequence[str]) -> str:
  """Keys with meaning, default and range; all of them, briefly, without names.

  Args:
    names: keys or sections.
  """
  if not names:
    lines = [f"{key.name}={_default(key)}" for key in KEYS]
    return "\n".join([*lines, "`kfkd help KEY` says more, of a section too"])
  return "\n".join(
    f"{key.name}: {key.meaning}\n  default {_default(key)}; allowed "
    f"{'True, False' if isinstance(key.default, bool) else key.range.allowed}"
    f"{' or None' if key.kind is not None else ''}"
    for name in names
    for key in _found(name)
  )


def _found(name: str) -> list[Key]:
  name = name.removeprefix("config.")
  if name in BY_NAME:
    return [BY_NAME[name]]
  inside = [key for key in KEYS if key.name.startswith(f"{name}.")]
  if not inside:
    raise tree.unknown(name, list(BY_NAME))
  return inside


def _default(key: Key) -> str:
  if isinstance(key.default, Following):
    return f"by {key.default.key}"
  return repr(key.default)
