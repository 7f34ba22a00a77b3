"""Data sets by name, splits and label noise, epochs, augmentation.

`load` reads a set through TFDS without TensorFlow, from folders of images, or
as the Hugging Face Hub has it, into arrays or, where they would not fit, into
`Stored` images that are decoded when read. `splits` divides it and corrupts
labels, `order` says which examples make which batch, `augment` runs inside the
training step and `stream` decodes batches ahead of it.
"""

from kfkd_jax.data.dataset import Dataset, Examples
from kfkd_jax.data.folders import NAMES as FOLDER_NAMES
from kfkd_jax.data.hub import Columns, is_of_hub
from kfkd_jax.data.rand_augment import MAX_MAGNITUDE
from kfkd_jax.data.sources import NAMES, STREAMING, builder, load, prepare
from kfkd_jax.data.stored import Stored
from kfkd_jax.data.stream import MAX_RAND_OPS

__all__ = [
  "FOLDER_NAMES",
  "MAX_MAGNITUDE",
  "MAX_RAND_OPS",
  "NAMES",
  "STREAMING",
  "Columns",
  "Dataset",
  "Examples",
  "Stored",
  "builder",
  "is_of_hub",
  "load",
  "prepare",
]
