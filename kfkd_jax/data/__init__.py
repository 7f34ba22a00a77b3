"""Data sets by name into arrays, splits and label noise, epochs, augmentation.

`load` reads a set through TFDS without TensorFlow. `splits` divides it and
corrupts labels, `order` says which examples make which batch, `augment` runs
inside the training step.
"""

from kfkd_jax.data.sources import (
  NAMES,
  Dataset,
  Examples,
  builder,
  load,
  prepare,
)

__all__ = ["NAMES", "Dataset", "Examples", "builder", "load", "prepare"]
