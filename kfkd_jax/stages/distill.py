"""Distils each fusion into one network of the original size."""

from __future__ import annotations

import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import files, history, losses, parallel
from kfkd_jax.stages import experiment, fuse, networks
from kfkd_jax.training import loop, objective, step

LESSON_KEYS = (
  "distill.targets",
  "distill.hard",
  "distill.alpha",
  "distill.temperature",
)


def student_name(teacher: str) -> str:
  """The run, and the method, of the student of a fusion."""
  return f"{teacher}_kd"


def artefacts(config: ml_collections.ConfigDict) -> list[str]:
  """What the stage leaves in the working directory."""
  return [
    f"runs/{name}"
    for teacher in config.distill.teachers
    for name in networks.run_names(config, student_name(teacher))
  ]


def run(config: ml_collections.ConfigDict, workdir: epath.Path) -> str:
  """Trains `runs/<fusion>_kd/` for every configured teacher."""
  accuracies = []
  for teacher in config.distill.teachers:
    weights = fuse.weights_of(workdir, teacher)
    name = student_name(teacher)
    networks.train(config, workdir, _plan(config, workdir, name, weights))
    accuracy = parallel.on_main(_accuracy, workdir, name)
    accuracies.append(f"{name} {accuracy:.3f}")
  return f"test accuracy: {', '.join(accuracies) or 'no teachers configured'}"


def _accuracy(workdir, name) -> float:
  store = networks.predictions(workdir, name, "test")
  return float(np.mean(store[len(store) - 1].argmax(-1) == store.labels))


def _plan(config, workdir, name, weights) -> networks.Plan:
  return networks.Plan(
    name,
    lambda: _lesson(config, workdir, weights),
    inputs={
      "distill": config_lib.subset(config, LESSON_KEYS),
      "weights": files.digest(weights.tobytes()),
    },
    changes={"train.epochs": config.distill.epochs or config.train.epochs},
  )


def _lesson(config, workdir, weights) -> networks.Lesson:
  options = {
    "alpha": config.distill.alpha,
    "temperature": config.distill.temperature,
  }
  stacked, weights = networks.read_members(config, workdir, weights)
  if config.distill.targets == "cached":
    return networks.Lesson(
      objective.cached_distillation(**options),
      extra={"teacher_probs": teacher_probs(config, stacked, weights)},
    )
  module = experiment.make_module(config, experiment.load_task(config))
  live = objective.live_distillation(
    step.eval_apply(module), hard=config.distill.hard, **options
  )
  stacked, weights = history.pad_members(
    stacked, weights, config.runtime.ensemble_axis
  )
  return networks.Lesson(live, frozen={"stacked": stacked, "weights": weights})


def teacher_probs(
  config: ml_collections.ConfigDict, stacked: dict, weights: np.ndarray
) -> np.ndarray:
  """The fused teacher on the training images' clean view, `f32[N, K]`.

  Args:
    config: the configuration.
    stacked: the members' variables `[M, ...]`.
    weights: `[M]`.
  """
  task = experiment.load_task(config)
  mesh = parallel.data_mesh()
  predictor = loop.Predictor(experiment.make_recipe(config, task), mesh)
  images = predictor.put(task.images)
  fused = np.zeros((len(task.images), task.num_classes), np.float32)
  for member, weight in enumerate(weights):
    variables = history.take_checkpoints(stacked, member)
    fused += weight * predictor(parallel.replicate(variables, mesh), images)
  if config.distill.hard:
    fused = np.asarray(losses.hard_targets(fused))
  return fused


def train_cost(config: ml_collections.ConfigDict, num_members: int) -> float:
  """Teaching and training a student, in trainings of one network.

  A training step counts as three forward passes. Cached targets take a pass
  of every member over the data, live ones take it in every epoch.
  """
  epochs = config.distill.epochs or config.train.epochs
  passes = 1 if config.distill.targets == "cached" else epochs
  forwards = 3 * epochs + passes * num_members
  return forwards / (3 * config.train.epochs)
