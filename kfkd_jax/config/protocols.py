"""What config files set by name: who selects, how labels are made wrong."""

from __future__ import annotations

from collections.abc import Iterable

import ml_collections

from kfkd_jax.config.tree import ConfigError

# Values of `selection.*`. How many examples are carved from train, and whether
# the mixture is told the noise (`fuse.transition`), stays as it is.
PROTOCOLS = {
  # As in the papers: one half of test selects for the other, three times.
  "paper": {"source": "test", "labels": "clean", "halvings": 3},
  # What somebody has who cannot check labels.
  "practitioner": {"source": "train", "labels": "noisy"},
  # In between: nothing of test is used up, but some labels were checked.
  "carved": {"source": "train", "labels": "clean"},
}


def set_protocol(config: ml_collections.ConfigDict, name: str) -> None:
  """Sets `selection.*` of a config to a protocol, a key of `PROTOCOLS`."""
  check_choice("protocol", name, PROTOCOLS)
  config.selection.update(PROTOCOLS[name])


def set_noise(
  config: ml_collections.ConfigDict, kind: str, rate: float
) -> None:
  """Sets `noise.kind` and `noise.rate`, the rate of no noise being 0."""
  config.noise.update({"kind": kind, "rate": 0.0 if kind == "none" else rate})


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
  """Raises a `ConfigError` unless a config file's argument is a choice."""
  if value not in choices:
    raise ConfigError(
      f"{name}={value!r} is not possible; allowed: {', '.join(choices)}"
    )
