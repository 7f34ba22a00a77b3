"""Options on any row: a fitted temperature, views of the test images."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from kfkd_jax import calibration, history, losses, parallel
from kfkd_jax.data import Stored, augment, order
from kfkd_jax.methods.ensemble import Ensemble, Source, predict
from kfkd_jax.run import (
  build,
  results,
  streams,
  workspace,
)
from kfkd_jax.run.tasks import Fold
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import evaluation


def with_temperature(
  space: Workspace,
  ensemble: Ensemble,
  fold: Fold,
) -> np.ndarray:
  """Test probabilities at the temperature fitted on a fold's points."""
  probs = predict(space.path, ensemble, fold.select_split)[fold.select_rows]
  labels = workspace.selection_labels(space, fold)
  temperature = calibration.fit_temperature(probs, labels)
  return np.asarray(
    losses.temper(predict(space.path, ensemble, "test"), temperature)
  )


def with_views(
  space: Workspace,
  sources: Sequence[Source],
) -> np.ndarray:
  """Test probabilities, the mean over `compare.views` views of each image.

  The first view is the image as it is, the others are drawn as in training.
  The sources' weights are over all checkpoints of their runs.
  """
  task = space.task
  mesh = parallel.data_mesh()
  recipe = build.make_recipe(space)
  predictor = evaluation.Predictor(recipe, mesh)
  predictors = {recipe.module: predictor}
  images = task.splits["test"].images
  views = [
    predictor.put(images if v == 0 else _view(space.config, images, v))
    for v in range(space.config.compare.views)
  ]
  total = np.zeros((len(images), task.num_classes), np.float32)
  for source in sources:
    stacked, weights = results.read_members(
      space, source.weights, name=source.run
    )
    trained = results.configured_as(space, source.run)
    recipe = build.make_recipe(trained)
    # Runs of one kind of network share what was compiled.
    if recipe.module not in predictors:
      predictors[recipe.module] = evaluation.Predictor(recipe, mesh)
    predictor = predictors[recipe.module]
    for member, weight in enumerate(weights):
      variables = history.take_checkpoints(stacked, member)
      variables = parallel.replicate(variables, mesh)
      for view in views:
        total += weight * predictor(variables, view)
  return total / (len(views) * len(sources))


def _view(config, images: np.ndarray | Stored, view: int) -> np.ndarray:
  """Every image as training might show it, `u8[N, H, W, Ch]`."""
  key = jax.random.key(streams.stream(config, "augment", view))
  changed = jax.jit(
    lambda positions, batch: augment.augment(
      key,
      positions,
      batch,
      pad=config.augment.pad,
      flip=config.augment.flip,
      cutout=config.augment.cutout,
    )
  )
  size = min(len(images), config.predictions.batch_size)
  index, mask = order.padded_batches(len(images), size)
  parts = [np.asarray(changed(rows, images[rows])) for rows in index]
  return np.concatenate(parts)[mask.ravel()]
