"""The networks of a working directory: trained, finished, read again.

`runs/<name>/` holds one network: `history/`, `resume/`, `predictions/<split>/`,
`metrics.jsonl`, `seconds.json`, `model.json` that says what network it is, and
`inputs.json` that stands for what it was trained from. A run made from other
inputs is never trained over.
"""

from __future__ import annotations

import contextlib
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import checkpoints, files, parallel, processes
from kfkd_jax import config as config_lib
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.run import (
  build,
  forecast,
  results,
  streams,
  workspace,
)
from kfkd_jax.run.objectives import OBJECTIVES
from kfkd_jax.run.progress import Progress
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import evaluation, loop, objective
from kfkd_jax.training.profiling import StepTrace


class Lesson(NamedTuple):
  """What a network is taught with.

  Attributes:
    objective: what it learns.
    extra: more arrays `[N, ...]` of the training set that the loss reads, and
      `image` and `label` where it is not the task's; who brings labels says
      what they count as well, by `trust`.
    frozen: arrays for the objective's targets.
    review: what to learn from next, given what was predicted so far.
  """

  objective: objective.Objective
  extra: dict[str, np.ndarray] | None = None
  frozen: Any = None
  review: loop.Review | None = None


class Plan(NamedTuple):
  """One network to train.

  Attributes:
    name: of the run.
    lesson: makes its lesson; called only if there is something to train.
    inputs: what besides the training configuration decides the outcome, as
      JSON can hold it.
    member: number of its random streams, 0 for the teacher's.
    changes: configuration that is different for this network, by dotted key.
    init: makes `{"params", "batch_stats"}` to start from; None starts as
      configured.
    keep_history: keep checkpoints as configured, not only the last.
    module: makes the module to train from the configured one.
  """

  name: str
  lesson: Callable[[], Lesson]
  inputs: dict[str, Any]
  member: int = 0
  changes: Mapping[str, Any] = types.MappingProxyType({})
  init: Callable[[], dict[str, Any]] | None = None
  keep_history: bool = False
  module: Callable[[nn.Module], nn.Module] = lambda module: module


def supervised(config: ml_collections.ConfigDict) -> Lesson:
  """The given labels, as the configuration trains on them."""
  return Lesson(OBJECTIVES[config.train.objective](config))


def origin(config: ml_collections.ConfigDict, plan: Plan) -> str:
  """What stands for all that the planned network is trained from."""
  config = config_lib.changed(config, plan.changes)
  return files.digest({
    "training": config_lib.deciding(config, "train"),
    "member": plan.member,
    "keep_history": plan.keep_history,
    **plan.inputs,
  })  # fmt: skip


def work(space: Workspace, plans: list[Plan]) -> str:
  """What training the planned networks takes, beside the teacher's."""
  teacher = space.config.train.epochs * build.network_size(space).compute
  total = 0.0
  for plan in plans:
    own = space.changed(plan.changes)
    total += own.config.train.epochs * build.network_size(own).compute
  return f"{forecast.times(total / teacher)} the work of training the teacher"


def would_be_replaced(run: epath.Path, origin: str) -> bool:
  """Whether a run holds work that was made from something else."""
  return results.origin_of(run) != origin and results.holds_work(run)


class WouldReplaceError(ValueError):
  """What took long to train would be lost; says what, and the ways on."""


def carry_out(space: Workspace, plan: Plan) -> None:
  """Trains the planned network unless it is finished already."""
  run = results.run_path(space.path, plan.name)
  # Before the plan's changes, which `origin` makes by itself.
  made_from = origin(space.config, plan)
  space = space.changed(plan.changes)
  processes.on_main(_prepare, run, made_from, space.config.model)
  folders = [
    results.run_path(space.path, n)
    for n in results.run_names(space.config, plan.name)
  ]
  if processes.on_main(lambda: all(map(results.is_whole, folders))):
    return
  task = space.task
  lesson = plan.lesson()
  extra = lesson.extra or {}
  labels = {} if "label" in extra else task.taught()
  examples = {"image": task.images, **labels, **extra}
  recipe = build.make_recipe(
    space,
    keep_history=plan.keep_history,
    num_train=len(examples["label"]),
  )
  recipe = recipe._replace(module=plan.module(recipe.module))
  splits = build.predicted_splits(space)
  expected = forecast.forecast(recipe, lesson.objective, task, splits)
  room = processes.on_main(forecast.check, run, expected)
  if plan.keep_history:
    processes.say(room)
  seeds = streams.seeds_for(space.config, plan.member)
  # Only teachers that the devices share out have a use for an axis.
  alike = lesson.objective.frozen_spec == parallel.REPLICATED
  ensemble = 1 if alike else space.config.runtime.ensemble_axis
  profiled = space.config.runtime.profile and plan.name == workspace.TEACHER
  with (
    Progress(run, plan.name, space.config) as show,
    StepTrace(run / "profile" if profiled else None) as trace,
    _timed(run),
  ):
    trained = loop.train(
      run,
      recipe,
      lesson.objective,
      examples,
      splits,
      seeds=seeds,
      mesh=parallel.data_mesh(ensemble=ensemble),
      frozen=lesson.frozen,
      init_from=(
        build.initial_variables(space, seeds)
        if plan.init is None
        else plan.init()
      ),
      review=lesson.review,
      observe=show,
      wrap_step=trace.wrap,
      owner={"run": plan.name, "inputs": made_from},
    )
  # Before the run counts as finished, which says that its average is there.
  if trained.average:
    store(space, f"{plan.name}_ema", trained.average)
  processes.on_main(_finish, run)


@contextlib.contextmanager
def _timed(run: epath.Path) -> Iterator[None]:
  """Adds to what the run took so far."""
  started = time.perf_counter()
  try:
    yield
  finally:
    # Not waiting for others, which may be gone; nor hiding what ended this.
    if processes.is_main_process():
      with contextlib.suppress(OSError):
        total = (results.seconds(run) or 0) + time.perf_counter() - started
        files.write_json(run / results.SECONDS, {"seconds": round(total, 1)})


def _prepare(run: epath.Path, made_from: str, model) -> None:
  """Clears what no work is lost with; notes what a new run is made from."""
  if would_be_replaced(run, made_from):
    raise WouldReplaceError(
      f"{run} was trained from something else; give --workdir=NEW, or --redo "
      "to set it aside and train it again"
    )
  if results.origin_of(run) != made_from:
    _discard(run)
    files.write_json(run / results.INPUTS, {"digest": made_from})
  _note_model(run, model)


def _finish(run: epath.Path) -> None:
  inputs = results.owner(run)["inputs"]
  note = {"contents": results.contents(run), "inputs": inputs}
  files.write_json(run / results.FINISHED, note)


def _discard(run: epath.Path) -> None:
  """Removes a run; one killed half-way is never mistaken for a fresh one."""
  if not files.exists(run):
    return
  trash = run.parent / f".{run.name}.discarded"
  trash.rmtree(missing_ok=True)
  run.rename(trash)
  trash.rmtree()


def store(
  space: Workspace,
  name: str,
  variables: dict[str, Any],
) -> None:
  """Makes a finished run of a network that was computed, not trained."""
  run = results.run_path(space.path, name)
  task = space.task
  recipe = build.make_recipe(space)
  mesh = parallel.data_mesh()
  variables = parallel.replicate(variables, mesh)
  network = files.digest(checkpoints.digests(parallel.to_host(variables)))

  def prepare():
    _discard(run)
    files.write_json(run / results.INPUTS, {"digest": network})
    _note_model(run, space.config.model)

  processes.on_main(prepare)
  predictor = evaluation.Predictor(recipe, mesh)
  for split, part in build.predicted_splits(space).items():
    probs = predictor(variables, predictor.put(part.images))

    def write(split=split, part=part, probs=probs):
      PredictionStore.create(
        run / "predictions" / split,
        part.labels,
        part.ids,
        num_classes=task.num_classes,
        dtype=space.config.predictions.dtype,
        owner={**results.owner(run), "split": split},
      ).write(recipe.epochs, probs)

    processes.on_main(write)
  with results.open_history(space.path, name) as history:
    history.save(recipe.epochs, variables)
  processes.on_main(_finish, run)


def _note_model(run: epath.Path, model: ml_collections.ConfigDict) -> None:
  content = files.sealed({"model": model.to_dict(), **results.owner(run)})
  files.write_json(run / results.MODEL, content)
