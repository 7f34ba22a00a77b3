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
import jax
import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import checkpoints, files, models, parallel, processes
from kfkd_jax import config as config_lib
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.run import experiment, forecast
from kfkd_jax.run.objectives import OBJECTIVES
from kfkd_jax.run.progress import Progress
from kfkd_jax.training import evaluation, loop, objective
from kfkd_jax.training.profiling import StepTrace

_MODEL = "model.json"
_SECONDS = "seconds.json"
_INPUTS = "inputs.json"
_FINISHED = "finished.json"
_INCOMPLETE = "incomplete"


class Lesson(NamedTuple):
  """What a network is taught with.

  Attributes:
    objective: what it learns.
    extra: more arrays `[N, ...]` of the training set that the loss reads, and
      `image` and `label` where it is not the task's.
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
  return Lesson(OBJECTIVES["ce"](config))


def run_path(workdir: epath.Path, name: str) -> epath.Path:
  """The folder of the run called `name`."""
  return epath.Path(workdir) / "runs" / name


def run_names(config: ml_collections.ConfigDict, name: str) -> list[str]:
  """The folders that training the run `name` makes."""
  averages = config.train.average_decay is not None
  return [name, f"{name}_ema"] if averages else [name]


def origin(config: ml_collections.ConfigDict, plan: Plan) -> str:
  """What stands for all that the planned network is trained from."""
  config = config_lib.changed(config, plan.changes)
  return files.digest({
    "training": config_lib.deciding(config, "train"),
    "member": plan.member,
    "keep_history": plan.keep_history,
    **plan.inputs,
  })  # fmt: skip


def owner(run: epath.Path) -> dict[str, str]:
  """Whose the files of a run are, as they say themselves."""
  made_from = _origin_of(run)
  inputs = {} if made_from is None else {"inputs": made_from}
  return {"run": run.name, **inputs}


def open_history(workdir: epath.Path, name: str) -> checkpoints.Checkpoints:
  """The checkpoints of the run `name`; a context manager."""
  run = run_path(workdir, name)
  whose = processes.on_main(owner, run)
  return checkpoints.Checkpoints(run / "history", owner=whose)


def contents(run: epath.Path) -> list[str]:
  """The checkpoints and predictions of a run; empty folders count as none."""
  found = [f"history/{p.name}" for p in _filled(run / "history")]
  for split in _filled(run / "predictions"):
    found += [f"predictions/{split.name}/{p.name}" for p in _filled(split)]
  return sorted(found)


def is_whole(run: epath.Path) -> bool:
  """Whether a run finished and still holds what it held then."""
  return seal(run) != _INCOMPLETE


def seal(run: epath.Path) -> str:
  """What a finished run holds and was made from, in short; or that it isn't."""
  try:
    note = files.read_json(run / _FINISHED)
    if note["contents"] != contents(run):
      return _INCOMPLETE
  except (FileNotFoundError, ValueError, TypeError, KeyError):
    return _INCOMPLETE
  # Runs of earlier versions noted their contents alone; their seals hold.
  return files.digest(note if "inputs" in note else note["contents"])


def _filled(folder: epath.Path) -> list[epath.Path]:
  if not files.is_folder(folder):
    return []
  return [
    p
    for p in folder.iterdir()
    if not p.name.startswith(".")
    and (not files.is_folder(p) or any(p.iterdir()))
  ]


def holds_work(run: epath.Path) -> bool:
  """Whether a run has a checkpoint, of its history or to continue from."""
  found = [*_filled(run / "history"), *_filled(run / "resume")]
  return any(p.name.isdigit() for p in found)


def work(config: ml_collections.ConfigDict, plans: list[Plan]) -> str:
  """What training the planned networks takes, beside the teacher's."""
  task = experiment.load_task(config)
  teacher = config.train.epochs * experiment.network_size(config, task).compute
  total = 0.0
  for plan in plans:
    own = config_lib.changed(config, plan.changes)
    total += own.train.epochs * experiment.network_size(own, task).compute
  return f"{forecast.times(total / teacher)} the work of training the teacher"


def would_be_replaced(run: epath.Path, origin: str) -> bool:
  """Whether a run holds work that was made from something else."""
  return _origin_of(run) != origin and holds_work(run)


def _origin_of(run: epath.Path) -> str | None:
  note = run / _INPUTS
  if not files.exists(note):
    return None
  try:
    return files.read_json(note)["digest"]
  except (TypeError, KeyError) as error:
    raise ValueError(f"{note} is damaged; remove it and run again") from error


class WouldReplaceError(ValueError):
  """What took long to train would be lost; says what, and the ways on."""


def train(
  config: ml_collections.ConfigDict, workdir: epath.Path, plan: Plan
) -> None:
  """Trains the planned network unless it is finished already."""
  run = run_path(workdir, plan.name)
  made_from = origin(config, plan)
  config = config_lib.changed(config, plan.changes)
  processes.on_main(_prepare, run, made_from, config.model)
  folders = [run_path(workdir, n) for n in run_names(config, plan.name)]
  if processes.on_main(lambda: all(map(is_whole, folders))):
    return
  task = experiment.load_task(config)
  lesson = plan.lesson()
  examples = {
    "image": task.images,
    "label": task.given,
    **(lesson.extra or {}),
  }
  recipe = experiment.make_recipe(
    config,
    task,
    keep_history=plan.keep_history,
    num_train=len(examples["label"]),
  )
  recipe = recipe._replace(module=plan.module(recipe.module))
  splits = experiment.predicted_splits(config, task)
  expected = forecast.forecast(recipe, lesson.objective, task, splits)
  room = processes.on_main(forecast.check, run, expected)
  if plan.keep_history:
    processes.say(room)
  seeds = experiment.seeds_for(config, plan.member)
  alike = lesson.objective.frozen_spec == parallel.REPLICATED
  ensemble = 1 if alike else config.runtime.ensemble_axis
  profiled = config.runtime.profile and plan.name == experiment.TEACHER
  with (
    Progress(run, plan.name, config) as show,
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
        experiment.initial_variables(config, task, seeds)
        if plan.init is None
        else plan.init()
      ),
      review=lesson.review,
      observe=show,
      wrap_step=trace.wrap,
      owner={"run": plan.name, "inputs": made_from},
    )
  if trained.average:
    store(config, workdir, f"{plan.name}_ema", trained.average)
  _finish(run)


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
        _note_seconds(run, time.perf_counter() - started)


def _note_seconds(run: epath.Path, more: float) -> None:
  total = round((seconds(run) or 0) + more, 1)
  files.write_json(run / _SECONDS, {"seconds": total})


def seconds(run: epath.Path) -> float | None:
  """How long the run was trained; None if that is not known."""
  with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
    return float(files.read_json(run / _SECONDS)["seconds"])
  return None


def _prepare(run: epath.Path, made_from: str, model) -> None:
  """Clears what no work is lost with; notes what a new run is made from."""
  if would_be_replaced(run, made_from):
    raise WouldReplaceError(
      f"{run} was trained from something else; give --workdir=NEW, or --redo "
      "to set it aside and train it again"
    )
  if _origin_of(run) != made_from:
    _discard(run)
    files.write_json(run / _INPUTS, {"digest": made_from})
  _note_model(run, model)


def _finish(run: epath.Path) -> None:
  processes.on_main(_note_finished, run)


def _note_finished(run: epath.Path) -> None:
  inputs = owner(run)["inputs"]
  note = {"contents": contents(run), "inputs": inputs}
  files.write_json(run / _FINISHED, note)


def _discard(run: epath.Path) -> None:
  """Removes a run; one killed half-way is never mistaken for a fresh one."""
  if not files.exists(run):
    return
  trash = run.parent / f".{run.name}.discarded"
  trash.rmtree(missing_ok=True)
  run.rename(trash)
  trash.rmtree()


def store(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  name: str,
  variables: dict[str, Any],
) -> None:
  """Makes a finished run of a network that was computed, not trained."""
  run = run_path(workdir, name)
  task = experiment.load_task(config)
  recipe = experiment.make_recipe(config, task)
  mesh = parallel.data_mesh()
  variables = parallel.replicate(variables, mesh)
  network = files.digest(checkpoints.digests(parallel.to_host(variables)))

  def prepare():
    _discard(run)
    files.write_json(run / _INPUTS, {"digest": network})
    _note_model(run, config.model)

  processes.on_main(prepare)
  predictor = evaluation.Predictor(recipe, mesh)
  for split, part in experiment.predicted_splits(config, task).items():
    probs = predictor(variables, predictor.put(part.images))

    def write(split=split, part=part, probs=probs):
      PredictionStore.create(
        run / "predictions" / split,
        part.labels,
        part.ids,
        num_classes=task.num_classes,
        dtype=config.predictions.dtype,
        owner={**owner(run), "split": split},
      ).write(recipe.epochs, probs)

    processes.on_main(write)
  with open_history(workdir, name) as history:
    history.save(recipe.epochs, variables)
  _finish(run)


def configured_as(
  config: ml_collections.ConfigDict, workdir: epath.Path, name: str
) -> ml_collections.ConfigDict:
  """`config` with the network that the run `name` is of."""
  model = processes.on_main(_model_of, run_path(workdir, name))
  if model is None or model == config.model.to_dict():
    return config
  return config_lib.changed(config, {f"model.{k}": v for k, v in model.items()})


def _note_model(run: epath.Path, model: ml_collections.ConfigDict) -> None:
  content = files.sealed({"model": model.to_dict(), **owner(run)})
  files.write_json(run / _MODEL, content)


def _model_of(run: epath.Path) -> dict[str, Any] | None:
  """None for a run of a version that made all of them alike."""
  note = run / _MODEL
  if not files.exists(note):
    return None
  content = files.unsealed(files.read_json(note))
  if content is None:
    raise ValueError(f"{note} is damaged; remove it and run again")
  wrong = files.differences(content, owner(run))
  if wrong:
    raise ValueError(
      f"{note} belongs elsewhere ({wrong}); remove it and run again"
    )
  return content["model"]


def predictions(workdir: epath.Path, name: str, split: str) -> PredictionStore:
  """The stored predictions of a run on a split."""
  run = run_path(workdir, name)
  return PredictionStore(
    run / "predictions" / split, owner={**owner(run), "split": split}
  )


def read_members(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  weights: np.ndarray,
  *,
  name: str = experiment.TEACHER,
) -> tuple[dict[str, Any], np.ndarray]:
  """The checkpoints that carry weight, of the teacher or another run.

  Returns:
    Stacked variables `[M, ...]` and their weights `[M]`.
  """
  epochs = predictions(workdir, name, "test").epochs
  members = np.flatnonzero(weights)
  with open_history(workdir, name) as history:
    kept = history.steps()
    if len(epochs) != len(weights) or not {epochs[m] for m in members} <= {
      *kept
    }:
      raise ValueError(
        f"{history.path} holds {len(kept)} checkpoints of {len(epochs)} "
        f"epochs, which {len(members)} of {len(weights)} weights do not fit; "
        "run the fuse stage again"
      )
    stacked = history.restore_stacked(
      [epochs[m] for m in members],
      template(configured_as(config, workdir, name)),
    )
  return stacked, np.asarray(weights)[members]


def kept_checkpoints(workdir: epath.Path, name: str) -> np.ndarray:
  """Places in a run's stored predictions whose networks are kept, `i64[M]`."""
  return np.asarray(processes.on_main(_kept, workdir, name), int)


def _kept(workdir, name) -> list[int]:
  history = run_path(workdir, name) / "history"
  there = {int(p.name) for p in _filled(history) if p.name.isdigit()}
  epochs = predictions(workdir, name, "test").epochs
  return [place for place, epoch in enumerate(epochs) if epoch in there]


def template(
  config: ml_collections.ConfigDict,
  *,
  module: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> dict[str, Any]:
  """The shapes of a network's variables, of the configured one or a plan's."""
  task = experiment.load_task(config)
  network = module(experiment.make_module(config, task))
  return jax.eval_shape(
    lambda: models.init(network, jax.random.key(0), task.images[:1])
  )
