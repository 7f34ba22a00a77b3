"""Two networks that teach each other while they train; one is kept."""

from __future__ import annotations

from typing import Any

from kfkd_jax import models
from kfkd_jax.methods.ensemble import Method, of_runs, on_all_folds
from kfkd_jax.run import build, networks, objectives, results, streams
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import self_taught


def _pair(module):
  return models.Pair(num_classes=module.num_classes, make=module.clone)


def _plans(space: Workspace) -> list[networks.Plan]:
  def init() -> dict[str, Any]:
    """Two times the pretrained weights, with heads of their own."""
    pair: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for member, place in enumerate(("first", "second")):
      seeds = streams.seeds_for(space.config, member)
      found = build.initial_variables(space, seeds) or {}
      for name, tree in found.items():
        pair[name][place] = tree
    return pair

  return [
    networks.Plan(
      "mutual_pair",
      lambda: networks.Lesson(self_taught.mutual()),
      inputs={},
      # An average would be of both networks, where what is stored is of one.
      changes={**objectives.PLAIN, "train.average_decay": None},
      init=init if space.config.model.pretrained is not None else None,
      module=_pair,
    )
  ]


def _make(space: Workspace) -> None:
  """Keeps the first of the two networks as a network like any other."""
  template = results.template(space, module=_pair)
  with results.open_history(space.path, "mutual_pair") as history:
    both = history.restore(history.steps()[-1], template)
  networks.store(space, "mutual", models.first_of(both))


MUTUAL = Method(
  on_all_folds(lambda space: [of_runs("mutual", ["mutual"], 2.0)]),
  _plans,
  _make,
  ("mutual",),
)
