"""Checkpoints on disk; the only room that imports Orbax.

Two kinds share one class: `history/` keeps parameters and batch statistics of
every epoch, `resume/` the newest full states. Beside each tree lies a JSON item
with the SHA-256 of every leaf, as Orbax itself does not notice a flipped bit,
and with whose checkpoint it is.
"""

from kfkd_jax.checkpoints.numbered import Checkpoints, disk_bytes
from kfkd_jax.checkpoints.trees import SavedTree, is_saved_tree
from kfkd_jax.checkpoints.ways import DamagedCheckpointError, digests

__all__ = [
  "Checkpoints",
  "DamagedCheckpointError",
  "SavedTree",
  "digests",
  "disk_bytes",
  "is_saved_tree",
]
