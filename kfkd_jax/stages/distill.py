"""Distils each fusion into one network, of the original size or smaller.

A student may teach the next one, for some rounds, and students may see more
images than their teachers had labels for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import (
  files,
  history,
  losses,
  metrics,
  models,
  parallel,
  processes,
)
from kfkd_jax.data import Stored
from kfkd_jax.run import experiment, forecast, networks
from kfkd_jax.stages import fuse
from kfkd_jax.training import evaluation, objective, step


def student_name(teacher: str, number: int = 1) -> str:
  """The run, and the method, of a fusion's student in round `number`."""
  return f"{teacher}_kd" if number == 1 else f"{teacher}_kd_{number}"


def students(
  config: ml_collections.ConfigDict, workdir: epath.Path, teacher: str
) -> Iterator[str]:
  """The students of a fusion, round by round.

  The next one comes only when the one before is trained: with
  `distill.rounds_stop`, its score on the selecting points decides whether there
  is a next one. The first that is no better than the one before is the last.
  """
  best = -np.inf
  for number in range(1, config.distill.rounds + 1):
    name = student_name(teacher, number)
    yield name
    if config.distill.rounds_stop != "none":
      score = processes.on_main(_score, config, workdir, name)
      if score <= best:
        return
      best = score


def _score(config, workdir, name) -> float:
  """How good a network is on the first fold's selecting points."""
  task = experiment.load_task(config)
  fold = task.folds[0]
  store = networks.predictions(workdir, name, fold.select_split)
  probs = store[len(store) - 1][fold.select_rows]
  labels = experiment.selection_labels(config, task, fold)
  if config.distill.rounds_stop == "accuracy":
    return float(metrics.accuracy(probs, labels))
  return -float(metrics.negative_log_likelihood(probs, labels))


def artefacts(config: ml_collections.ConfigDict) -> list[str]:
  """What the stage may leave in the working directory."""
  return [
    f"runs/{name}"
    for teacher in config.distill.teachers
    for number in range(1, config.distill.rounds + 1)
    for name in networks.run_names(config, student_name(teacher, number))
  ]


def plans(
  config: ml_collections.ConfigDict, workdir: epath.Path
) -> list[networks.Plan]:
  """Every student there may be, round by round."""
  return [
    plan
    for teacher in config.distill.teachers
    for plan in _rounds(config, workdir, teacher)
  ]


def _rounds(config, workdir, teacher) -> list[networks.Plan]:
  found: list[networks.Plan] = []
  for number in range(1, config.distill.rounds + 1):
    name = student_name(teacher, number)
    before = found[-1] if found else None
    found.append(_plan(config, workdir, name, teacher, before))
  return found


_LARGE = 10  # times the teacher's operations


def cost(
  config: ml_collections.ConfigDict, plans: list[networks.Plan]
) -> list[str]:
  """What the students take, and a warning where that is far more."""
  student = config_lib.changed(config, student_changes(config))
  size = experiment.network_size(student, experiment.load_task(config))
  count = f"{len(plans)} student{'s' * (len(plans) > 1)}"
  described = forecast.described(student, size)
  line = f"{count}: {described}, {networks.work(config, plans)}"
  return [line, *warnings(config)]


def warnings(config: ml_collections.ConfigDict) -> list[str]:
  """A line where a student takes many times its teacher's operations."""
  ratio = student_size(config).compute if config.distill.teachers else 0
  if ratio <= _LARGE:
    return []
  name = config.distill.model or config.model.name
  return [
    f"WARNING: a student {name} takes {forecast.times(ratio)} its teacher's "
    "operations on every image; distill.model and distill.width decide it"
  ]


def run(config: ml_collections.ConfigDict, workdir: epath.Path) -> str:
  """Trains `runs/<fusion>_kd/` and its successors for every teacher."""
  accuracies = []
  for teacher in config.distill.teachers:
    planned = _rounds(config, workdir, teacher)
    for name, plan in zip(
      students(config, workdir, teacher), planned, strict=False
    ):
      networks.train(config, workdir, plan)
      accuracy = processes.on_main(_accuracy, workdir, name)
      accuracies.append(f"{name} {accuracy:.3f}")
  return f"test accuracy: {', '.join(accuracies) or 'no teachers configured'}"


def _accuracy(workdir, name) -> float:
  store = networks.predictions(workdir, name, "test")
  return float(np.mean(store[len(store) - 1].argmax(-1) == store.labels))


def _plan(config, workdir, name, teacher, before) -> networks.Plan:
  """A student of the fusion, or of the student `before`."""
  if before is None:
    run, weights = experiment.TEACHER, fuse.weights_of(workdir, teacher)
    taught_by = {"weights": files.digest(weights.tobytes())}
  else:
    run, weights = before.name, np.ones(1, np.float32)
    taught_by = {"student": networks.origin(config, before)}
  return networks.Plan(
    name,
    lambda: _lesson(config, workdir, run, weights),
    inputs={
      "distill": config_lib.deciding(config, "lesson"),
      **taught_by,
    },
    changes=student_changes(config),
  )


def student_changes(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Configuration that is different for a student, by dotted key."""
  changes: dict[str, Any] = {"train.epochs": student_epochs(config)}
  name, width = config.distill.model, config.distill.width
  if name is None and width is None:
    return changes
  name = name or config.model.name
  known, fresh = models.option_names(name), config_lib.default_config().model
  model = {
    key: value if key in known else fresh[key]
    for key, value in config.model.items()
  }
  model |= {"name": name, "width": width}
  return {**changes, **{f"model.{key}": value for key, value in model.items()}}


def student_size(config: ml_collections.ConfigDict) -> experiment.Size:
  """What a student takes, in networks like the teacher's."""
  student = config_lib.changed(config, student_changes(config))
  if student.model == config.model:
    return experiment.SAME_SIZE
  task = experiment.load_task(config)
  small, large = (experiment.network_size(c, task) for c in (student, config))
  return experiment.Size(
    small.compute / large.compute, small.storage / large.storage
  )


def student_epochs(config: ml_collections.ConfigDict) -> int:
  """How long a student is trained."""
  return config.distill.epochs or config.train.epochs


def _lesson(config, workdir, run, weights) -> networks.Lesson:
  options = {
    "alpha": config.distill.alpha,
    "temperature": config.distill.temperature,
  }
  stacked, weights = networks.read_members(config, workdir, weights, name=run)
  teaching = networks.configured_as(config, workdir, run)

  def taught(images):
    probs = teacher_probs(teaching, stacked, weights, images)
    hard = config.distill.hard
    return np.asarray(losses.hard_targets(probs)) if hard else probs

  examples = student_examples(config, taught)
  if config.distill.targets == "cached":
    examples["teacher_probs"] = taught(examples["image"])
    return networks.Lesson(
      objective.cached_distillation(**options), extra=examples
    )
  module = experiment.make_module(teaching, experiment.load_task(config))
  live = objective.live_distillation(
    step.eval_apply(module), hard=config.distill.hard, **options
  )
  members = history.pad_members(stacked, weights, config.runtime.ensemble_axis)
  frozen = dict(zip(("stacked", "weights"), members, strict=True))
  return networks.Lesson(live, extra=examples, frozen=frozen)


def student_examples(
  config: ml_collections.ConfigDict,
  taught: Callable[[np.ndarray | Stored], np.ndarray],
) -> dict[str, Any]:
  """The images a student sees, with labels and whether it has any.

  Args:
    config: the configuration.
    taught: `images -> probabilities`, whose top class stands for a label where
      there is none.

  Returns:
    `image`, `label`, and `unlabelled` where some are.
  """
  task = experiment.load_task(config)
  if config.distill.inputs == "train":
    return {"image": task.images, "label": task.given}
  extra = experiment.extra_images(config)
  guessed = taught(extra).argmax(-1).astype(np.int32)
  if config.distill.inputs == "extra":
    unlabelled = np.ones(len(extra), np.float32)
    return {"image": extra, "label": guessed, "unlabelled": unlabelled}
  counts = (len(task.images), len(extra))
  return {
    "image": np.concatenate([task.images[:], extra[:]]),
    "label": np.concatenate([task.given, guessed]),
    "unlabelled": np.repeat(np.array([0, 1], np.float32), counts),
  }


def teacher_probs(
  config: ml_collections.ConfigDict,
  stacked: dict,
  weights: np.ndarray,
  images: np.ndarray | Stored,
) -> np.ndarray:
  """The fused teacher on the images' clean view, `f32[N, K]`.

  Args:
    config: the configuration, its network that of the members.
    stacked: their variables `[M, ...]`.
    weights: `[M]`.
    images: `u8[N, H, W, Ch]`, in memory or on disk.
  """
  members = _member_outputs(config, stacked, images, features=False)
  return sum(
    weight * probs for weight, probs in zip(weights, members, strict=True)
  )


def teacher_features(
  config: ml_collections.ConfigDict,
  stacked: dict,
  weights: np.ndarray,
  images: np.ndarray | Stored,
) -> np.ndarray:
  """The members' features side by side, each times the root of its weight.

  Squared distances and inner products between rows are then the weighted means
  of the members'.

  Args:
    config: the configuration.
    stacked: the members' variables `[M, ...]`.
    weights: `[M]`.
    images: `u8[N, H, W, Ch]`, in memory or on disk.

  Returns:
    `f32[N, M F]`.
  """
  members = _member_outputs(config, stacked, images, features=True)
  parts = [
    np.sqrt(weight) * features
    for weight, features in zip(weights, members, strict=True)
  ]
  return np.concatenate(parts, axis=1)


def _member_outputs(config, stacked, images, *, features) -> Iterator[Any]:
  task = experiment.load_task(config)
  mesh = parallel.data_mesh()
  recipe = experiment.make_recipe(config, task)
  predictor = evaluation.Predictor(recipe, mesh, features=features)
  resident = predictor.put(images)
  for member in range(len(jax.tree.leaves(stacked)[0])):
    variables = history.take_checkpoints(stacked, member)
    yield predictor(parallel.replicate(variables, mesh), resident)


def train_cost(config: ml_collections.ConfigDict, num_members: float) -> float:
  """Teaching and training a student, in trainings of one network.

  A training step counts as three forward passes. Cached targets take a pass
  of every member over the data, live ones take it in every epoch.

  Args:
    config: the configuration.
    num_members: that teach, in networks like the teacher's.
  """
  epochs = student_epochs(config)
  passes = 1 if config.distill.targets == "cached" else epochs
  task = experiment.load_task(config)
  count = len(task.given)
  if config.distill.inputs != "train":
    count = len(experiment.extra_images(config))
    count += len(task.given) if config.distill.inputs == "both" else 0
  share = count / len(task.given)
  return share * taught_cost(config, passes * num_members)


def taught_cost(config: ml_collections.ConfigDict, passes: float) -> float:
  """A student and its teachers' passes over the training set, in trainings."""
  training = 3 * student_epochs(config) * student_size(config).compute
  forwards = training + passes
  return forwards / (3 * config.train.epochs)
