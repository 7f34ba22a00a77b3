"""Predictions: of any examples, and of the splits as a run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from kfkd_jax import parallel, processes
from kfkd_jax.data import order, stream
from kfkd_jax.data.stored import Stored
from kfkd_jax.history import with_room
from kfkd_jax.training import retention
from kfkd_jax.training import step as step_lib
from kfkd_jax.training.recipe import Recipe
from kfkd_jax.training.termination import Termination

REMEDY = (
  "earlier epochs are kept; lower the learning rate or clip the gradients"
)


class DivergedError(FloatingPointError):
  """The numbers are no longer finite; says at which epoch and step."""


class Split(NamedTuple):
  """Examples to predict at the end of every epoch.

  Attributes:
    images: `u8[N, H, W, Ch]`, in memory or on disk.
    labels: `i32[N]` what to score the predictions against.
    ids: `[N]` positions in the data set's split.
  """

  images: np.ndarray | Stored
  labels: np.ndarray
  ids: np.ndarray


class Predictor:
  """Probabilities, or features, for any number of examples on all devices."""

  def __init__(
    self, recipe: Recipe, mesh: jax.sharding.Mesh, *, features: bool = False
  ):
    self._mesh = mesh
    self._batch = recipe.evaluation_batch
    if features:
      step = step_lib.make_feature_step(recipe.module, recipe.views)
    else:
      apply_fn = step_lib.eval_apply(recipe.module)
      step = step_lib.make_predict_step(apply_fn, recipe.views)
    self._predict = parallel.pmapped(
      step,
      mesh,
      in_specs=(parallel.REPLICATED, parallel.REPLICATED, parallel.SHARDED),
      out_specs=parallel.SHARDED,
    )

  def put(self, images: np.ndarray | Stored) -> jax.Array | Stored:
    """Images on the devices, for repeated prediction; on disk they stay."""
    if isinstance(images, Stored):
      return images
    return parallel.replicate(images, self._mesh)

  def __call__(self, variables: Any, images: jax.Array | Stored) -> np.ndarray:
    """What `variables` say of `images` from `put`, `f32[N, K]` or `[N, F]`."""
    size = min(images.shape[0], self._batch)
    # One of several processes must not do otherwise than the others.
    least = size if jax.process_count() > 1 else 1
    return with_room(
      lambda rows: self._by_batches(variables, images, rows),
      size,
      least=max(least, self._mesh.shape[parallel.DATA_AXIS]),
      smaller=self._shrink,
    )

  def _shrink(self, size: int) -> None:
    processes.say(
      f"no room on the device to predict {self._batch} examples at once; going "
      f"on with predictions.batch_size={size}"
    )
    self._batch = size

  def _by_batches(self, variables, images, wanted: int) -> np.ndarray:
    count = images.shape[0]
    size = parallel.round_up(wanted, self._mesh)
    # One shape for all batches, also the last: it compiles once.
    index, _ = order.padded_batches(count, size)
    resident = {} if isinstance(images, Stored) else {"image": images}
    in_flight = parallel.InFlight(parallel.in_flight_limit())
    parts = []
    for rows in self._rows(images, index):
      part = self._predict(variables, resident, rows)
      part.copy_to_host_async()  # while the next batches are computed
      in_flight.add(part)
      parts.append(part)
    # Padding is at the end.
    return np.concatenate(parallel.to_host(parts))[:count]

  def _rows(
    self, images: jax.Array | Stored, index: np.ndarray
  ) -> Iterator[dict[str, jax.Array]]:
    """What each batch is made from; of stored images, this process's own."""
    if not isinstance(images, Stored):
      for rows in index:
        yield parallel.shard({"index": rows}, self._mesh)
      return
    size = index.shape[1]
    own = index[:, parallel.own_rows(size, self._mesh)]
    with stream.ahead(stream.FixedBatches(images, own)) as batches:
      for batch in batches:
        yield {"image": parallel.shard_own(batch, self._mesh, count=size)}


_JUDGE = "select"  # whose examples say what a checkpoint remembers


class Evaluation:
  """Predicts the splits after each epoch, stores and scores them."""

  def __init__(self, recipe, clock, splits, stores, mesh):
    self._splits = splits
    self._stores = stores
    self._mesh = mesh
    self._predictor = Predictor(recipe, mesh)
    self._images = {k: self._predictor.put(s.images) for k, s in splits.items()}
    self._right = {
      name: retention.RightBits(len(s.labels), len(clock.kept))
      for name, s in splits.items()
    }

  def recall(self, history, epochs: list[int], template: Any) -> None:
    """Reads what was stored; what is lost is predicted again."""
    for name, images in self._images.items():
      for epoch in processes.on_main(self._lost, name, epochs):
        variables = history.restore(epoch, template)
        variables = parallel.replicate(variables, self._mesh)
        probs = self._predictor(variables, images)
        processes.on_main(self._write, name, epoch, probs)
      for epoch in epochs:
        processes.on_main(self._read, name, epoch)
        if name == _JUDGE:
          self.retain(history, epoch)

  def retain(self, history, epoch: int) -> None:
    """Lets the history drop what remembers least; `epoch` came last."""
    if _JUDGE in self._right:
      history.retain(epoch, self._right[_JUDGE])

  def _lost(self, name: str, epochs: list[int]) -> list[int]:
    """The epochs whose stored predictions cannot be read."""
    lost = []
    for epoch in epochs:
      try:
        self._stores[name].read(epoch)
      except (FileNotFoundError, ValueError) as error:
        print(f"{error}; predicting again with history/{epoch}")
        lost.append(epoch)
    return lost

  def _write(self, name: str, epoch: int, probs: np.ndarray) -> None:
    self._stores[name].write(epoch, probs)

  def _read(self, name: str, epoch: int) -> None:
    labels = self._splits[name].labels
    found = self._stores[name].read(epoch)
    self._right[name].add(found.argmax(-1) == labels)

  def __call__(self, variables: Any, stop: Termination):
    """Probabilities by split, None if asked to stop meanwhile."""
    found = {}
    for name, images in self._images.items():
      found[name] = self._predictor(variables, images)
      if stop.requested():
        return None
    return found

  def score(
    self, epoch: int, probs: dict[str, np.ndarray], *, keep: bool
  ) -> dict[str, float]:
    """Scores of each split; with `keep`, into the store."""
    return processes.on_main(self._score, epoch, probs, keep)

  def _score(self, epoch, probs, keep) -> dict[str, float]:
    # All splits before the first is stored: an epoch is kept whole or not at
    # all.
    for name, found in probs.items():
      if not np.isfinite(found).all():
        raise DivergedError(
          f"{self._stores[name].path}: after epoch {epoch} some probabilities "
          f"are not finite; {REMEDY}"
        )
    scores: dict[str, float] = {}
    for name, found in probs.items():
      labels = self._splits[name].labels
      scores |= _scores(name, found, labels, self._right[name])
      if keep:
        self._stores[name].write(epoch, found)
        # As a resumed run will read them.
        found = found.astype(self._stores[name].dtype)
        self._right[name].add(found.argmax(-1) == labels)
    return scores


def _scores(name, probs, labels, right) -> dict[str, float]:
  """Accuracy, NLL and, given earlier epochs, the largest forget fraction."""
  # Not by `metrics`, which computes on the device: it is full of training.
  hits = probs.argmax(-1) == labels
  chosen = np.take_along_axis(probs, labels[:, None], 1)
  # A softmax in float32 may round to 0, whose logarithm has no end.
  nll = -np.log(np.maximum(chosen, np.finfo(np.float32).tiny))
  scores = {
    f"{name}/accuracy": float(hits.mean()),
    f"{name}/nll": float(nll.mean()),
  }
  if len(right):
    most = right.remembered(hits).max()
    scores[f"{name}/max_forget"] = float(most) / len(labels)
  return scores
