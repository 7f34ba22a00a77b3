"""Chooses weights over the history, on the selecting points alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from kfkd_jax import files, fusion
from kfkd_jax.predictions import Subset
from kfkd_jax.run import build, results, workspace
from kfkd_jax.run.workspace import Workspace


def run(space: Workspace) -> str:
  """Writes `fusion.json`: for every fold, each fusion's weights and gain."""
  task = space.task
  kept = results.kept_checkpoints(space.path, workspace.TEACHER)
  folds: list[dict[str, Any]] = []
  for fold in task.folds:
    store = results.predictions(
      space.path, workspace.TEACHER, fold.select_split
    )
    labels = workspace.selection_labels(space, fold)
    probs = Subset(store, fold.select_rows, kept)
    methods = fuse(
      space.config,
      probs,
      labels,
      transition=workspace.told_noise(
        space.config, task.transition, probs, labels
      ),
    )
    for method in methods.values():
      method["weights"] = results.over_all(method["weights"], kept, len(store))
      if "members" in method:
        method["members"] = kept[method["members"]]
    folds.append({
      "selected_on": workspace.selected_on(space.config, fold),
      "num_select": len(labels),
      "methods": methods,
    })  # fmt: skip
  # Every split is predicted at the same checkpoints: any fold's store will do.
  epochs = build.epochs_at(space, store.epochs)
  files.write_json(
    space.path / "fusion.json", {"epochs": epochs, "folds": folds}
  )
  return summary(folds[0]["methods"], epochs)


def fuse(
  config: ml_collections.ConfigDict,
  probs: Any,
  labels: np.ndarray,
  *,
  transition: np.ndarray | None = None,
) -> dict[str, Any]:
  """Every fusion of `probs[C, N, K]` chosen on `labels[N]`, as JSON.

  Each has `weights`, `accuracy` and `gain` on these points; Knowledge Fusion
  also `members`, `epsilons` and `window`, the mixture its optimality `gap`.
  """
  options = {
    "window": config.fuse.window,
    "num_epsilons": config.fuse.num_epsilons,
  }
  mixture = fusion.mixture_fusion(
    probs, labels, transition=transition, tolerance=config.fuse.tolerance
  )
  likelihoods = fusion.label_likelihoods(probs, labels, transition=transition)
  methods = {
    "kf_one_step": _knowledge_fusion(probs, labels, max_members=1, **options),
    "kf": _knowledge_fusion(
      probs, labels, max_members=config.fuse.max_members, **options
    ),
    "mixture": {
      "weights": mixture,
      "gap": fusion.mixture_gap(likelihoods, mixture),
    },
  }
  final = np.mean(np.asarray(probs[probs.shape[0] - 1]).argmax(-1) == labels)
  for method in methods.values():
    fused = fusion.fuse(probs, np.asarray(method["weights"], np.float32))
    accuracy = np.mean(np.asarray(fused).argmax(-1) == labels)
    method["accuracy"] = float(accuracy)
    method["gain"] = float(accuracy - final)
  return methods


def summary(
  methods: dict[str, Any],
  epochs: Sequence[float],
  *,
  points: str = "selecting points",
) -> str:
  """One line about the fusions of a fold; `points` says what chose them."""
  kf, mixture = methods["kf"], methods["mixture"]
  members = [epochs[m] for m in kf["members"]]
  used = int(np.count_nonzero(mixture["weights"]))
  which = f"of epochs {members}" if members else "of the last epoch alone"
  return (
    f"on the {points} KF {which} has accuracy "
    f"{kf['accuracy']:.3f} ({kf['gain']:+.3f}), the mixture of {used} "
    f"checkpoints {mixture['accuracy']:.3f} ({mixture['gain']:+.3f})"
  )


def _knowledge_fusion(probs, labels, **options) -> dict[str, Any]:
  chosen = fusion.knowledge_fusion(probs, labels, **options)
  return chosen._asdict()
