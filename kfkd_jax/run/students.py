"""Students of a fusion: what they are, what they see, what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from kfkd_jax import config as config_lib
from kfkd_jax import data as data_lib
from kfkd_jax import (
  history,
  metrics,
  models,
  parallel,
  processes,
)
from kfkd_jax.data import Stored
from kfkd_jax.run import build, results, tasks, workspace
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import evaluation


def student_name(teacher: str, round_: int = 1) -> str:
  """The run, and the method, of a fusion's student in a round, from 1 on."""
  return f"{teacher}_kd" if round_ == 1 else f"{teacher}_kd_{round_}"


def students(space: Workspace, teacher: str) -> Iterator[str]:
  """The students of a fusion, round by round.

  The next one comes only when the one before is trained: with
  `distill.rounds_stop`, its score on the selecting points decides whether there
  is a next one. The first that is no better than the one before is the last.
  """
  best = -np.inf
  for round_ in range(1, space.config.distill.rounds + 1):
    name = student_name(teacher, round_)
    yield name
    if space.config.distill.rounds_stop != "none":
      score = processes.on_main(_score, space, name)
      if score <= best:
        return
      best = score


def _score(space: Workspace, name) -> float:
  """How good a network is on the first fold's selecting points."""
  task = space.task
  fold = task.folds[0]
  store = results.predictions(space.path, name, fold.select_split)
  probs = store[len(store) - 1][fold.select_rows]
  labels = workspace.selection_labels(space, fold)
  if space.config.distill.rounds_stop == "accuracy":
    return float(metrics.accuracy(probs, labels))
  return -float(metrics.negative_log_likelihood(probs, labels))


def student_changes(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Configuration that is different for a student, by dotted key."""
  changes: dict[str, Any] = {
    "train.objective": "ce",  # its labels' share is distill.label_loss
    "train.epochs": student_epochs(config),
  }
  name, width = config.distill.model, config.distill.width
  if name is None and width is None:
    return changes
  name = name or config.model.name
  known, fresh = models.option_names(name), config_lib.default_config().model
  # What the student's kind does not know is not the teacher's to say.
  model = {
    key: value if key in known else fresh[key]
    for key, value in config.model.items()
  }
  model |= {"name": name, "width": width}
  return {**changes, **{f"model.{key}": value for key, value in model.items()}}


def student_size(space: Workspace) -> build.Size:
  """What a student takes, in networks like the teacher's."""
  student = space.changed(student_changes(space.config))
  if student.config.model == space.config.model:
    return build.SAME_SIZE
  small, large = build.network_size(student), build.network_size(space)
  return build.Size(
    small.compute / large.compute, small.storage / large.storage
  )


def student_epochs(config: ml_collections.ConfigDict) -> int:
  """How long a student is trained."""
  return config.distill.epochs or config.train.epochs


def student_examples(
  space: Workspace,
  taught: Callable[[np.ndarray | Stored], np.ndarray],
) -> dict[str, Any]:
  """The images a student sees, with labels and whether it has any.

  Args:
    space: configuration and data.
    taught: `images -> probabilities`, whose top class stands for a label where
      there is none.

  Returns:
    `image`, `label`, and `unlabelled` where some are, or where labels do not
    count whole: what they lack the teacher says.
  """
  task = space.task
  doubt = None if task.trust is None else 1 - task.trust
  if space.config.distill.inputs == "train":
    examples = {"image": task.images, "label": task.given}
    return examples if doubt is None else {**examples, "unlabelled": doubt}
  extra = extra_images(space)
  guessed = taught(extra).argmax(-1).astype(np.int32)
  if space.config.distill.inputs == "extra":
    unlabelled = np.ones(len(extra), np.float32)
    return {"image": extra, "label": guessed, "unlabelled": unlabelled}
  if doubt is None:
    doubt = np.zeros(len(task.images), np.float32)
  return {
    "image": np.concatenate([task.images[:], extra[:]]),
    "label": np.concatenate([task.given, guessed]),
    "unlabelled": np.concatenate([doubt, np.ones(len(extra), np.float32)]),
  }


def teacher_probs(
  space: Workspace,
  stacked: dict,
  weights: np.ndarray,
  images: np.ndarray | Stored,
) -> np.ndarray:
  """The fused teacher on the images' clean view, `f32[N, K]`.

  Args:
    space: its network is that of the members.
    stacked: their variables `[M, ...]`.
    weights: `[M]`.
    images: `u8[N, H, W, Ch]`, in memory or on disk.
  """
  members = _member_outputs(space, stacked, images, features=False)
  return sum(
    weight * probs for weight, probs in zip(weights, members, strict=True)
  )


def teacher_features(
  space: Workspace,
  stacked: dict,
  weights: np.ndarray,
  images: np.ndarray | Stored,
) -> np.ndarray:
  """The members' features side by side, each times the root of its weight.

  Squared distances and inner products between rows are then the weighted means
  of the members'.

  Args:
    space: configuration and data.
    stacked: the members' variables `[M, ...]`.
    weights: `[M]`.
    images: `u8[N, H, W, Ch]`, in memory or on disk.

  Returns:
    `f32[N, M F]`.
  """
  members = _member_outputs(space, stacked, images, features=True)
  parts = [
    np.sqrt(weight) * features
    for weight, features in zip(weights, members, strict=True)
  ]
  return np.concatenate(parts, axis=1)


def _member_outputs(
  space: Workspace, stacked, images, *, features
) -> Iterator[Any]:
  mesh = parallel.data_mesh()
  recipe = build.make_recipe(space)
  predictor = evaluation.Predictor(recipe, mesh, features=features)
  resident = predictor.put(images)
  # One after another: what all of them say together may have no room.
  for member in range(len(jax.tree.leaves(stacked)[0])):
    variables = history.take_checkpoints(stacked, member)
    yield predictor(parallel.replicate(variables, mesh), resident)


def train_cost(space: Workspace, num_members: float) -> float:
  """Teaching and training a student, in trainings of one network.

  A training step counts as three forward passes. Cached targets take a pass
  of every member over the data, live ones take it in every epoch.

  Args:
    space: configuration and data.
    num_members: that teach, in networks like the teacher's.
  """
  epochs = student_epochs(space.config)
  passes = 1 if space.config.distill.targets == "cached" else epochs
  task = space.task
  count = len(task.given)
  if space.config.distill.inputs != "train":
    count = len(extra_images(space))
    count += len(task.given) if space.config.distill.inputs == "both" else 0
  passes_of_all = count / len(task.given)
  return passes_of_all * taught_cost(space, passes * num_members)


def taught_cost(space: Workspace, passes: float) -> float:
  """A student and its teachers' passes over the training set, in trainings."""
  training = 3 * student_epochs(space.config) * student_size(space).compute
  forwards = training + passes
  return forwards / (3 * space.config.train.epochs)


def extra_images(
  space: Workspace,
) -> np.ndarray | data_lib.Stored:
  """`u8[N, H, W, Ch]` images that students see without labels."""
  task, name = space.task, space.config.distill.extra
  if name == "rest":
    images = task.rest
    if not len(images):
      raise config_lib.ConfigError(
        f"distill.extra='rest' finds nothing: data.num_train="
        f"{space.config.data.num_train} leaves no image of {task.name} over"
      )
  else:
    # Through a dict, or keys that follow data.name would follow the new one.
    other = ml_collections.ConfigDict(space.config.to_dict())
    other.data.name, other.noise.field = name, None
    if name not in data_lib.FOLDER_NAMES:  # the folder is the first set's
      other.data.root = None
    images = tasks.load_dataset(other).train.images
  if images.shape[1:] != task.images.shape[1:]:
    raise config_lib.ConfigError(
      f"distill.extra={name!r} has images of shape {images.shape[1:]}, which "
      f"do not fit {task.images.shape[1:]} of data.name={task.name!r}"
    )
  on_disk = [isinstance(x, data_lib.Stored) for x in (images, task.images)]
  if space.config.distill.inputs == "both" and any(on_disk):
    raise config_lib.ConfigError(
      "distill.inputs='both' needs all images in memory, but those of "
      f"data.name={task.name!r} or distill.extra={name!r} stay on disk; see "
      "data.stream"
    )
  return images
