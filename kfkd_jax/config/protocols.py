"""Who selects and with which labels, by name."""

from __future__ import annotations

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
  if name not in PROTOCOLS:
    raise ConfigError(
      f"protocol={name!r} is not possible; allowed: {', '.join(PROTOCOLS)}"
    )
  config.selection.update(PROTOCOLS[name])
