"""The stages: what each does, needs and leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kfkd_jax.export import models as export
from kfkd_jax.run import networks
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import (
  audit,
  compare,
  diagnose,
  distill,
  fuse,
  rivals,
  train,
)


def _report(space: Workspace) -> str:
  from kfkd_jax.report import run_page  # Matplotlib takes its time to load

  return run_page.run(space)


class Stage(NamedTuple):
  """A step of the pipeline and what it depends on.

  Attributes:
    run: does the work, on every process; with `alone` on the main one.
    needs: stages whose artefacts it reads.
    artefacts: what it leaves in the working directory: files, folders of runs,
      and folders with `SHA256SUMS`.
    plans: the networks that it trains.
    cost: of those that are not trained yet, to be said before.
  """

  run: Callable[[Workspace], str]
  needs: tuple[str, ...]
  artefacts: Callable[[Workspace], Sequence[str]]
  alone: bool = False
  plans: Callable[[Workspace], list[networks.Plan]] = lambda space: []
  cost: Callable[[Workspace, list[networks.Plan]], list[str]] = (
    lambda space, plans: []
  )


STAGES: dict[str, Stage] = {
  "train": Stage(
    train.run, (), train.artefacts, False, train.plans, train.cost
  ),
  "diagnose": Stage(
    diagnose.run, ("train",), lambda space: ("diagnosis.json",), alone=True
  ),
  "fuse": Stage(
    fuse.run, ("train",), lambda space: ("fusion.json",), alone=True
  ),
  "distill": Stage(
    distill.run,
    needs=("train", "fuse"),
    artefacts=distill.artefacts,
    plans=distill.plans,
    cost=distill.cost,
  ),
  "rivals": Stage(
    rivals.run,
    needs=("train", "fuse"),
    artefacts=rivals.artefacts,
    plans=rivals.plans,
    cost=rivals.cost,
  ),
  "compare": Stage(
    compare.run,
    needs=("train", "fuse", "distill", "rivals"),
    artefacts=lambda space: ("results.jsonl", "hits.npz"),
  ),
  "report": Stage(
    _report,
    needs=("train", "diagnose", "fuse", "distill", "compare"),
    artefacts=lambda space: ("report",),
    alone=True,
  ),
}

# Stages that only their own command runs.
ON_REQUEST: dict[str, Stage] = {
  "audit": Stage(
    audit.run, ("train",), audit.artefacts, False, audit.plans, audit.cost
  ),
  "export": Stage(
    export.run,
    needs=("train", "fuse", "distill", "compare"),
    artefacts=lambda space: ("export",),
  ),
}
KNOWN = {**STAGES, **ON_REQUEST}
