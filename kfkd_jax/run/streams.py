"""Random streams, each for one purpose."""

from __future__ import annotations

import ml_collections
import numpy as np

from kfkd_jax.training import loop


def seeds_for(config: ml_collections.ConfigDict, member: int = 0) -> loop.Seeds:
  """Random streams of the network number `member`; 0 is the teacher.

  Students share the teacher's streams; members of an ensemble differ in all.
  """
  streams = ("model", "order", "augment")
  return loop.Seeds(*(stream(config, s, member) for s in streams))


def stream(
  config: ml_collections.ConfigDict, name: str, member: int = 0
) -> int:
  """A 32-bit seed for one purpose, independent of those for the others."""
  # By place: a new stream goes to the end, or every seed draws other numbers.
  names = tuple(config.seeds)
  root = config.seed if config.seeds[name] is None else config.seeds[name]
  sequence = np.random.SeedSequence((root, names.index(name), member))
  return int(sequence.generate_state(1)[0])
