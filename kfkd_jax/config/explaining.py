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
  lines = []
  for name in (name.removeprefix("config.") for name in names):
    found = [k for k in KEYS if f"{k.name}.".startswith(f"{name}.")]
    if not found:
      raise tree.unknown(name, list(BY_NAME))
    lines += [
      f"{key.name}: {key.meaning}\n  default {_default(key)}; allowed "
      f"{'True, False' if isinstance(key.default, bool) else key.range.allowed}"
      f"{' or None' if key.kind is not None else ''}"
      for key in found
    ]
  return "\n".join(lines)


def _default(key: Key) -> str:
  if isinstance(key.default, Following):
    return f"by {key.default.key}"
  return repr(key.default)
