"""Data sets by name, splits and label noise, epochs, augmentation.

`load` reads a set through TFDS without TensorFlow, or from folders of images,
into arrays or, where they would not fit, into `Stored` images that are decoded
when read. `splits` divides it and corrupts labels, `order` says which examples
make which batch, `augment` runs inside the training step and `stream` decodes
batches ahead of it.
"""

from kfkd_jax.data.dataset import Dataset, Examples
from kfkd_jax.data.sources import NAMES, STREAMING, builder, load, prepare
from kfkd_jax.data.stored import Stored

__all__ = [
  "NAMES",
  "STREAMING",
  "Dataset",
  "Examples",
  "Stored",
  "builder",
  "load",
  "prepare",
]
