"""Plain training with another loss, meant for labels that may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_collections

from kfkd_jax.stages import networks
from kfkd_jax.stages.methods.ensemble import (
  SINGLE_IMAGES,
  Ensemble,
  Method,
  of_runs,
)
from kfkd_jax.training import objective


def _method(
  name: str,
  keys: tuple[str, ...],
  teach: Callable[..., objective.Objective],
  changes: Callable[..., dict[str, Any]] = lambda *values: {},
) -> Method:
  """One network, trained once; `teach` and `changes` take `keys`' values."""

  def plans(config: ml_collections.ConfigDict, workdir) -> list[networks.Plan]:
    del workdir
    values = [config.baselines[key] for key in keys]
    return [
      networks.Plan(
        name,
        lambda: networks.Lesson(teach(*values)),
        inputs=dict(zip(keys, values, strict=True)),
        changes=changes(*values),
      )
    ]

  def ensembles(
    config: ml_collections.ConfigDict, workdir, number
  ) -> list[Ensemble]:
    del config, workdir, number
    return [of_runs(name, [name], 1.0)]

  return Method(ensembles, plans)


ROBUST: dict[str, Method] = {
  "gce": _method("gce", ("gce_q",), objective.generalised),
  "sce": _method("sce", ("sce_weights",), objective.symmetric),
  "elr": _method(
    "elr",
    ("elr_weight", "elr_decay"),
    objective.early_learning,
    lambda *_: SINGLE_IMAGES,
  ),
  "label_smoothing": _method(
    "label_smoothing",
    ("label_smoothing",),
    lambda share: objective.supervised(label_smoothing=share),
  ),
  "mixup": _method(
    "mixup",
    ("mixup",),
    lambda _: objective.supervised(),
    lambda concentration: {"augment.mixup": concentration},
  ),
}
