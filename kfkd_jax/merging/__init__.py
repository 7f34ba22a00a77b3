"""Checkpoints that somebody saved become one network, tensor by tensor.

Files are read piece by piece, so neither they nor the network need fit into
memory. `find` gives a sequence that `averaging.greedy_merge` takes as well.

Letters: C checkpoints in time order.
"""

from kfkd_jax.merging.finding import Checkpoints, find
from kfkd_jax.merging.shapes import SHAPES, weights_for
from kfkd_jax.merging.writing import notes, summary, write

__all__ = [
  "SHAPES",
  "Checkpoints",
  "find",
  "notes",
  "summary",
  "weights_for",
  "write",
]
