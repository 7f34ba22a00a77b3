"""The training loop: one run, from fresh or resumed to its last epoch.

Teachers, students, independent networks and every strategy pass through `train`
and differ by the recipe and the objective.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from etils import epath

from kfkd_jax import checkpoints, files, forgetting, parallel
from kfkd_jax.data import order
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.training import step as step_lib
from kfkd_jax.training.objective import Objective
from kfkd_jax.training.state import TrainState, init_state


class Recipe(NamedTuple):
  """How one network is trained, whatever it learns from.

  Attributes:
    module: the network, its `axis_name` that of the mesh.
    optimizer: an optax transformation.
    views: normalisation and augmentation.
    epochs: passes over the training set.
    batch_size: of all devices together; divides over them.
    average_decay: of a moving average of the weights; None keeps none.
    history_every: epochs between kept checkpoints; the last is always kept.
    resume_every: epochs between full states.
    evaluation_batch: examples predicted at once, over all devices.
    prediction_dtype: of the stored probabilities.
  """

  module: nn.Module
  optimizer: optax.GradientTransformation
  views: step_lib.Views
  epochs: int
  batch_size: int
  average_decay: float | None = None
  history_every: int = 1
  resume_every: int = 1
  evaluation_batch: int = 1024
  prediction_dtype: str = "float32"


class Seeds(NamedTuple):
  """Separate random streams: changing one changes only what it names."""

  model: int
  order: int
  augment: int


class Split(NamedTuple):
  """Examples to predict at the end of every epoch.

  Attributes:
    images: `u8[N, H, W, Ch]`.
    labels: `i32[N]` what to score the predictions against.
    ids: `[N]` positions in the data set's split.
  """

  images: np.ndarray
  labels: np.ndarray
  ids: np.ndarray


class Trained(NamedTuple):
  """A finished network, as NumPy arrays.

  Attributes:
    variables: `{"params", "batch_stats"}` of the last checkpoint.
    average: their moving average, `{}` when none was kept.
  """

  variables: dict[str, Any]
  average: dict[str, Any]


class EpochReport(NamedTuple):
  """What an observer of the loop learns at the end of an epoch.

  Attributes:
    epoch: finished epochs.
    epochs: of the whole run.
    metrics: `split/metric` -> value.
    steps_per_second: training steps alone.
  """

  epoch: int
  epochs: int
  metrics: dict[str, float]
  steps_per_second: float


def train(
  run: epath.Path,
  recipe: Recipe,
  objective: Objective,
  training_set: dict[str, np.ndarray],
  splits: dict[str, Split],
  *,
  seeds: Seeds,
  mesh: jax.sharding.Mesh,
  frozen: Any = None,
  init_from: Any = None,
  observe: Callable[[EpochReport], None] = lambda report: None,
) -> Trained:
  """Trains one network in the folder `run`, continuing what is there.

  At each epoch's end the splits' predictions go into the store and, when due,
  the network into `history/` and the full state into `resume/`. A run that was
  stopped anywhere continues to the same bits.

  Args:
    run: the run's folder.
    recipe: how to train.
    objective: what to learn.
    training_set: arrays with leading axis N: `image`, `label`, and what the
      objective reads.
    splits: what to predict, by name.
    seeds: the random streams.
    mesh: from `parallel.data_mesh`.
    frozen: arrays handed to the objective's targets.
    init_from: `{"params", "batch_stats"}` to start from instead of fresh
      ones.
    observe: called after each epoch.

  Returns:
    What the last checkpoint holds.
  """
  _check_batch(recipe, mesh)
  with (
    checkpoints.Checkpoints(run / "history") as history,
    checkpoints.Checkpoints(run / "resume", keep=2) as resume,
  ):
    stores = _open_stores(run, splits, recipe)
    state = _initial_state(recipe, seeds, training_set, init_from)
    state, finished = _resumed(run, state, history, resume, stores, recipe)
    state = parallel.replicate(state, mesh)
    resident = parallel.replicate(training_set, mesh)
    frozen = parallel.replicate(frozen, mesh)
    run_epoch = _make_epoch(recipe, objective, seeds, mesh)
    predictor = Predictor(recipe, mesh)
    images = {k: predictor.put(s.images) for k, s in splits.items()}
    right = {name: _right_so_far(store) for name, store in stores.items()}

    for epoch in range(finished + 1, recipe.epochs + 1):
      state, metrics, rate = run_epoch(state, frozen, resident, epoch - 1)
      keep = _is_due(epoch, recipe.history_every, recipe.epochs)
      for name, split in splits.items():
        probs = predictor(state.variables, images[name])
        metrics |= _scores(name, probs, split.labels, right[name])
        if keep:
          stores[name].write(epoch, probs)
          right[name].append(probs.argmax(-1) == split.labels)
      if keep:
        history.save(epoch, state.variables)
      _append_metrics(run, epoch, metrics)
      if _is_due(epoch, recipe.resume_every, recipe.epochs):
        history.wait()  # a resumed run must find all that came before it
        resume.save(epoch, state)
      observe(EpochReport(epoch, recipe.epochs, metrics, rate))

  return parallel.to_host(Trained(state.variables, state.average))


class Predictor:
  """Probabilities for any number of examples, over all devices."""

  def __init__(self, recipe: Recipe, mesh: jax.sharding.Mesh):
    self._mesh = mesh
    self._batch = recipe.evaluation_batch
    self._predict = parallel.pmapped(
      step_lib.make_predict_step(
        step_lib.eval_apply(recipe.module), recipe.views
      ),
      mesh,
      in_specs=(parallel.REPLICATED, parallel.REPLICATED, parallel.SHARDED),
      out_specs=parallel.SHARDED,
    )

  def put(self, images: np.ndarray) -> jax.Array:
    """Images on the devices, for repeated prediction."""
    return parallel.replicate(images, self._mesh)

  def __call__(self, variables: Any, images: jax.Array) -> np.ndarray:
    """Probabilities `f32[N, K]` of `variables` on `images` from `put`."""
    count = images.shape[0]
    size = parallel.round_up(min(count, self._batch), self._mesh)
    parts = []
    for start in range(0, count, size):
      # Fill rows repeat the last example and are cut off below.
      index = np.minimum(np.arange(start, start + size), count - 1)
      rows = parallel.shard(index.astype(np.int32), self._mesh)
      parts.append(parallel.to_host(self._predict(variables, images, rows)))
    return np.concatenate(parts)[:count]


def _make_epoch(recipe, objective, seeds, mesh):
  """Builds `run_epoch(state, frozen, resident, epoch)`: one exact pass."""
  step = parallel.pmapped(
    step_lib.make_train_step(
      recipe.module,
      recipe.optimizer,
      objective,
      recipe.views,
      average_decay=recipe.average_decay,
    ),
    mesh,
    in_specs=(
      parallel.REPLICATED,
      parallel.REPLICATED,
      parallel.REPLICATED,
      parallel.SHARDED,
      parallel.REPLICATED,
    ),
    out_specs=(parallel.REPLICATED, parallel.REPLICATED),
    donate=(0,),
  )
  seed = parallel.replicate(np.uint32(seeds.augment), mesh)
  position = np.arange(recipe.batch_size, dtype=np.int32)

  def run_epoch(state, frozen, resident, epoch):
    count = len(resident["label"])
    permutation = order.epoch_order(seeds.order, epoch, count)
    batches = order.epoch_batches(permutation, recipe.batch_size)
    in_flight = parallel.InFlight(parallel.in_flight_limit())
    sums = []
    started = time.perf_counter()
    for index, weight in zip(*batches, strict=True):
      rows = {"index": index, "weight": weight, "position": position}
      state, metrics = step(
        state, frozen, resident, parallel.shard(rows, mesh), seed
      )
      in_flight.add(metrics)
      sums.append(metrics)
    in_flight.drain()
    seconds = time.perf_counter() - started
    total = jax.tree.map(lambda *x: float(np.sum(x)), *parallel.to_host(sums))
    metrics = {
      "fit/loss": total.loss / total.count,
      "fit/accuracy": total.correct / total.count,
    }
    return state, metrics, len(sums) / seconds

  return run_epoch


def _initial_state(recipe, seeds, training_set, init_from) -> TrainState:
  state = init_state(
    recipe.module,
    recipe.optimizer,
    jax.random.key(seeds.model),
    training_set["image"][:1],
    keep_average=recipe.average_decay is not None,
  )
  if init_from is not None:
    state = state._replace(**init_from)
    if recipe.average_decay is not None:
      state = state._replace(average=init_from)
  return state


def _resumed(run, state, history, resume, stores, recipe):
  """The newest state that everything before it supports, or the given one."""
  template = jax.tree.map(np.asarray, state)
  for epoch in reversed(resume.steps()):
    due = [
      e
      for e in range(1, epoch + 1)
      if _is_due(e, recipe.history_every, recipe.epochs)
    ]
    complete = set(due) <= set(history.steps()) and all(
      set(due) <= set(s.epochs) for s in stores.values()
    )
    if not complete:
      continue
    try:
      state = resume.restore(epoch, template)
    except checkpoints.DamagedCheckpointError as error:
      print(f"{error}; going back to an older one")
      continue
    break
  else:
    epoch = 0
  for kept in (history, resume):
    kept.delete_after(epoch)
  for store in stores.values():
    store.truncate(epoch)
  metrics = run / "metrics.jsonl"
  if metrics.exists():
    rows = files.read_json_lines(metrics)
    files.write_json_lines(metrics, [r for r in rows if r["epoch"] <= epoch])
  return state, epoch


def _open_stores(run, splits, recipe) -> dict[str, PredictionStore]:
  return {
    name: PredictionStore.create(
      run / "predictions" / name,
      split.labels,
      split.ids,
      num_classes=recipe.module.num_classes,
      dtype=recipe.prediction_dtype,
    )
    for name, split in splits.items()
  }


def _right_so_far(store: PredictionStore) -> list[np.ndarray]:
  return list(forgetting.correctness(store, store.labels)) if len(store) else []


def _scores(name, probs, labels, right) -> dict[str, float]:
  """Accuracy, NLL and, given earlier epochs, the largest forget fraction."""
  hits = probs.argmax(-1) == labels
  chosen = np.take_along_axis(probs, labels[:, None], 1)
  nll = -np.log(np.maximum(chosen, np.finfo(np.float32).tiny))
  scores = {
    f"{name}/accuracy": float(hits.mean()),
    f"{name}/nll": float(nll.mean()),
  }
  if right:
    forget = max(float(np.mean(before & ~hits)) for before in right)
    scores[f"{name}/max_forget"] = forget
  return scores


def _append_metrics(run, epoch, metrics) -> None:
  if parallel.is_main_process():
    files.append_json_line(run / "metrics.jsonl", {"epoch": epoch, **metrics})


def _is_due(epoch: int, every: int, epochs: int) -> bool:
  return epoch % every == 0 or epoch == epochs


def _check_batch(recipe: Recipe, mesh: jax.sharding.Mesh) -> None:
  if recipe.batch_size % mesh.size:
    raise ValueError(
      f"batch_size {recipe.batch_size} does not divide over {mesh.size} devices"
    )
