"""Reads and runs an exported model that nothing vouches for.

    python -P trial.py MODEL.jaxexp

Flipped bits can crash whoever reads such a file, so it is a program of its own.
"""

import sys

import jax
import numpy as np
from jax import export


def main(path: str) -> None:
  """Takes every step that `kfkd predict` takes, on one black image."""
  with open(path, "rb") as file:
    exported = export.deserialize(bytearray(file.read()))
  exported.mlir_module()
  if "cpu" in exported.platforms and exported.nr_devices == 1:
    (images,) = exported.in_avals
    call = jax.jit(exported.call)
    call(np.zeros((1, *images.shape[1:]), images.dtype)).block_until_ready()


if __name__ == "__main__":
  main(sys.argv[1])
