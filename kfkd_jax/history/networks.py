"""What may stand for `apply_fn(variables, inputs) -> logits[N, K]`."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax

from kfkd_jax.history.stacking import named_leaves

ApplyFn = Callable[[Any, Any], jax.Array]


def as_apply_fn(network: ApplyFn | Any) -> ApplyFn:
  """Returns a function as it is, and one of the states of an NNX network.

  Networks of one graph give equal functions, so nothing is compiled twice.

  Args:
    network: (variables, inputs) -> logits; an `nnx.Module`, which is left as it
      is; or its `nnx.GraphDef`. Both predict in eval mode.
  """
  nnx: Any = sys.modules.get("flax.nnx")  # else nobody has its networks
  if nnx is not None and isinstance(network, nnx.Module):
    return _Merged(nnx.graphdef(network))
  if nnx is not None and isinstance(network, nnx.GraphDef):
    return _Merged(network)
  return network


@dataclasses.dataclass(frozen=True)
class _Merged:
  """(state, inputs) -> logits of an NNX network in eval mode."""

  graph: Any

  def __call__(self, state: Any, inputs: Any) -> jax.Array:
    nnx: Any = sys.modules["flax.nnx"]

    def by_path(state):
      # A variable may hold None or a dict.
      return named_leaves(state, lambda node: isinstance(node, nnx.Variable))

    # `merge` counts the leaves and gives them out in the order of their paths,
    # whatever these are. So it tells the paths of the graph as well.
    numbers = {number: number for number in range(self.graph.num_leaves)}
    needed = by_path(nnx.state(nnx.merge(self.graph, numbers)))
    given = by_path(state)
    different = sorted(needed.keys() ^ given.keys())
    if different:
      where = "network" if different[0] in needed else "checkpoints"
      raise ValueError(
        "checkpoints must be all of nnx.state(net) of a network of this "
        f"graph; {different[0]!r} is in the {where} alone."
      )
    leaves = {number: given[path] for number, path in enumerate(needed)}
    net = nnx.merge(self.graph, leaves)
    net.eval()
    return net(inputs)
