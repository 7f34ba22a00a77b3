"""Stacked checkpoints of one training run, and prediction with them.

`apply_fn(variables, inputs) -> logits[N, K]` is an NNX network, where the
checkpoints are copies of its `nnx.state`, or any pure function. Pass the same
function object every time: what is compiled is kept per function. Letters: C
checkpoints, N examples, K classes.
"""

from kfkd_jax.history.predicting import (
  fused_predict,
  predict,
  predict_checkpoints,
  with_room,
)
from kfkd_jax.history.stacking import (
  check_same_leaves,
  named_leaves,
  num_checkpoints,
  pad_members,
  stack_checkpoints,
  take_checkpoints,
  unstack_checkpoints,
)

__all__ = [
  "check_same_leaves",
  "fused_predict",
  "named_leaves",
  "num_checkpoints",
  "pad_members",
  "predict",
  "predict_checkpoints",
  "stack_checkpoints",
  "take_checkpoints",
  "unstack_checkpoints",
  "with_room",
]
