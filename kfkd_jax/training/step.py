"""One training step and one prediction step, written for a single device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from kfkd_jax import averaging, parallel
from kfkd_jax.data import augment
from kfkd_jax.parallel import DATA_AXIS
from kfkd_jax.training import memory
from kfkd_jax.training.objective import Batch, Gate, Objective
from kfkd_jax.training.state import SPECS, TrainState

ApplyFn = Callable[[Any, chex.Array], chex.Array]


class Views(NamedTuple):
  """How stored images become the network's input.

  Attributes:
    mean: per channel, of images scaled to 0..1.
    std: likewise.
    pad: pixels of padding before a random crop to the old size; 0: no crop.
    flip: mirror half of the images.
    cutout: side of a square that is blanked; 0: none.
    mixup: mixing concentration of the Beta distribution; 0: no mixing.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  pad: int = 0
  flip: bool = False
  cutout: int = 0
  mixup: float = 0.0

  def clean(self, images: chex.Array) -> chex.Array:
    """Normalised float images, as the network sees them in evaluation."""
    mean, std = np.asarray(self.mean), np.asarray(self.std)
    return augment.normalise(images, mean, std)


class StepMetrics(NamedTuple):
  """Sums over the global batch; divide once, at the end of the epoch.

  A step returns them as the columns of one array: what leaves the device costs
  by the piece.

  Attributes:
    loss: of the real rows, each as often as it counts.
    correct: real rows whose given label was predicted.
    count: real rows.
    broken: devices whose loss or new network is not finite.
    gated: real rows times the share of parameters whose gate was open.
  """

  loss: chex.Array
  correct: chex.Array
  count: chex.Array
  broken: chex.Array
  gated: chex.Array


class _Learnt(NamedTuple):
  """What the forward and backward pass of some rows gave.

  Attributes:
    grads: one tree a term of the loss, for the mean over the global batch.
    batch_stats: the BatchNorm statistics after it.
    loss: summed over the rows.
    logits: `[B, K]`.
    memory: the rows' new memory.
  """

  grads: tuple[Any, ...]
  batch_stats: Any
  loss: chex.Array
  logits: chex.Array
  memory: Any


# What is drawn beside the views, whose keys are numbered by rows of the batch.
_MIXING, _PARTS = np.uint32(2**32 - 1), np.uint32(2**32 - 2)


def make_train_step(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  objective: Objective,
  views: Views,
  *,
  average_decay: float | None = None,
  micro_batches: int = 1,
) -> Callable[..., tuple[TrainState, chex.Array]]:
  """Builds `step(state, frozen, resident, rows, seed)` for one device.

  It gives the new state and `f32[5]` the `StepMetrics`.

  `resident` holds the training set's arrays on the device, `rows` this device's
  share of the batches: `index` and `weight` (and the examples' own arrays if
  they are not resident), each `[R, B, ...]`, of which step s takes number
  `s % R`. So an epoch's rows are put on the devices once, and a step has
  nothing to send. The loss is the mean over the real rows of the global batch,
  so any number of devices takes the same step: a weighted mean where the
  training set says by `trust` what its examples count.

  With `micro_batches` above 1 the share is learnt piece by piece and the
  gradients are added up: the same step in less memory, except that BatchNorm
  and means over the batch see one piece at a time.
  """
  learn = _make_learner(module, objective)
  is_random = getattr(module, "is_random", False)

  def step(state, frozen, resident, rows, seed):
    # Of the step alone: a resumed run draws the same views, nothing is stored.
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    batch = _gather(resident, _rows_of(state.step, rows))
    batch = _augmented(key, batch, views)
    if views.mixup:
      batch = _mixed(key, batch, views.mixup, module.num_classes)
    if is_random:
      batch = {**batch, "keys": _keys(key, batch["position"])}
    # Read before and written after: the loss sees what the epoch before left.
    if objective.memory is not None:
      remembered = memory.read(state.memory, batch["index"])
      batch = {**batch, "memory": remembered}
    batch, total = _weighed(batch)
    learnt = _in_pieces(
      lambda stats, piece: learn(state.params, stats, frozen, piece, total),
      state.batch_stats,
      batch,
      micro_batches,
    )
    # Over the ensemble axis too, whose devices did the same: a mean of equals
    # makes them equal to the last bit, which `REPLICATED` results must be.
    grads, batch_stats = lax.pmean(
      (learnt.grads, learnt.batch_stats), parallel.ALL_AXES
    )
    grads, opened = _gated(grads, objective.gate)
    state = _updated(state, optimizer, grads, batch_stats, average_decay)
    if objective.memory is not None:
      written = memory.write(
        state.memory, batch["index"], batch["weight"], learnt.memory
      )
      state = state._replace(memory=written)
    sums = _sums(learnt, batch, state.variables, opened)
    return state, lax.psum(jnp.stack(sums), DATA_AXIS)

  return step


def map_train_step(
  step: Callable[..., tuple[TrainState, chex.Array]],
  mesh: jax.sharding.Mesh,
  *,
  frozen: jax.sharding.PartitionSpec = parallel.REPLICATED,
) -> Callable[..., tuple[TrainState, chex.Array]]:
  """`make_train_step`'s function on all devices; the old state is given up.

  Args:
    step: of one device.
    mesh: from `parallel.data_mesh`.
    frozen: the objective's `frozen_spec`.
  """
  everywhere = parallel.REPLICATED
  return parallel.pmapped(
    step,
    mesh,
    in_specs=(SPECS, frozen, everywhere, parallel.BATCHES, everywhere),
    out_specs=(SPECS, everywhere),
    donate=(0,),
  )


def _make_learner(module: nn.Module, objective: Objective):
  """Builds `learn(params, batch_stats, frozen, batch, total_worth)`."""
  # A gate compares two gradients, so its term needs one of its own.
  terms = [objective.loss]
  if objective.gate is not None:
    terms.append(objective.gate.loss)
  collections = ["batch_stats"]
  if objective.features:
    collections.append("intermediates")

  def learn(params, batch_stats, frozen, batch, total_worth):
    # Outside what is differentiated: no gradient flows into a target.
    batch = objective.targets(frozen, batch["image"], batch)
    keys = {"keys": batch["keys"]} if "keys" in batch else {}

    def forward(params):
      logits, updates = module.apply(
        {"params": params, "batch_stats": batch_stats},
        batch["image"],
        train=True,
        mutable=collections,
        **keys,
      )
      seen = batch
      if objective.features:
        # Every `sow` makes a tuple, of as many entries as it was called.
        seen = {**batch, "features": updates["intermediates"]["features"][0]}
      # Worth 0 keeps a fill row out of the loss; BatchNorm still sees it, so
      # that its statistics are always of full batches.
      totals = [jnp.sum(term(logits, seen) * seen["worth"]) for term in terms]
      means = [total / total_worth for total in totals]
      return means, (totals, logits, updates)

    # One forward pass for all terms. `pull` takes a cotangent for every total:
    # a row of the identity picks one, so each pull is the gradient of one term.
    _, pull, (totals, logits, updates) = jax.vjp(forward, params, has_aux=True)
    grads = [pull(list(unit))[0] for unit in np.eye(len(terms), dtype="f")]
    rows = {}
    if objective.memory is not None:
      rows = objective.memory.update(batch["memory"], logits, batch)
    # A network without BatchNorm has no such collection.
    statistics = updates.get("batch_stats", {})
    return _Learnt(tuple(grads), statistics, sum(totals), logits, rows)

  return learn


def _weighed(batch: Batch) -> tuple[Batch, chex.Array]:
  """The batch with what its rows count in the loss; a device's sum."""
  worth = batch["weight"]
  if "trust" in batch:
    worth = worth * batch["trust"]
  # Rows that together count for less than one are not blown up to one.
  total = jnp.maximum(lax.psum(jnp.sum(worth), DATA_AXIS), 1)
  # Per device, so that the mean over devices is the mean over real rows.
  return {**batch, "worth": worth}, total / lax.psum(1, DATA_AXIS)


def _in_pieces(learn, batch_stats, batch: Batch, pieces: int) -> _Learnt:
  """`learn(batch_stats, batch)` on `pieces` equal parts, added up."""
  if pieces == 1:
    return learn(batch_stats, batch)
  size = len(batch["weight"]) // pieces
  parts = jax.tree.map(lambda x: x.reshape(pieces, size, *x.shape[1:]), batch)

  # The statistics are carried, as each piece continues where the last one
  # ended; a scan would stack them if they were among the results.
  def one(statistics, part):
    found = learn(statistics, part)
    return found.batch_stats, found._replace(batch_stats=())

  # XLA runs convolutions inside a loop very slowly on CPU.
  unroll = pieces if jax.default_backend() == "cpu" else 1
  batch_stats, found = lax.scan(one, batch_stats, parts, unroll=unroll)
  grads, loss = jax.tree.map(lambda x: x.sum(0), (found.grads, found.loss))
  logits, rows = jax.tree.map(
    lambda x: x.reshape(pieces * size, *x.shape[2:]),
    (found.logits, found.memory),
  )
  return _Learnt(grads, batch_stats, loss, logits, rows)


def _gated(grads: tuple[Any, ...], gate: Gate | None):
  """The gradient to follow, and the share of parameters with an open gate."""
  if gate is None:
    return grads[0], jnp.float32(0)
  main, term = grads
  if gate.by_group:
    groups = [
      _gated_group({k: main[k]}, {k: term[k]}, gate.threshold) for k in main
    ]
  else:
    groups = [_gated_group(main, term, gate.threshold)]
  merged = {k: v for group, _ in groups for k, v in group.items()}
  opened = [part for _, part in groups]
  return merged, sum(opened) / sum(x.size for x in jax.tree.leaves(main))


def _gated_group(main, term, threshold: float):
  """`main`, plus `term` if their cosine is above the threshold."""
  # Multiplied out: a gradient of zeros has no cosine, and its gate stays shut.
  norms = jnp.sqrt(_inner(main, main) * _inner(term, term))
  is_open = _inner(main, term) > threshold * norms
  merged = jax.tree.map(lambda a, b: a + is_open * b, main, term)
  return merged, is_open * sum(x.size for x in jax.tree.leaves(main))


def _inner(a, b) -> chex.Array:
  products = jax.tree.map(lambda x, y: jnp.vdot(x, y), a, b)
  return sum(jax.tree.leaves(products), jnp.float32(0))


def make_predict_step(
  apply_fn: Callable[[Any, chex.Array], chex.Array], views: Views
) -> Callable[[Any, Batch, Batch], chex.Array]:
  """Builds `predict(variables, resident, rows) -> probs` for one device.

  As in training, `rows` holds the `index` into what is resident, or `image`.
  """

  def predict(variables, resident, rows):
    images = _gather(resident, rows)["image"]
    logits = apply_fn(variables, views.clean(images))
    return jax.nn.softmax(logits.astype(jnp.float32))

  return predict


def make_feature_step(
  module: nn.Module, views: Views
) -> Callable[[Any, Batch, Batch], chex.Array]:
  """Builds `read(variables, resident, rows) -> features` for one device."""

  def read(variables, resident, rows):
    images = _gather(resident, rows)["image"]
    _, seen = module.apply(
      variables, views.clean(images), train=False, mutable=["intermediates"]
    )
    return seen["intermediates"]["features"][0].astype(jnp.float32)

  return read


def eval_apply(module: nn.Module) -> ApplyFn:
  """`module` as a pure function `(variables, images) -> logits`, eval mode."""

  def apply_fn(variables, images):
    return module.apply(variables, images, train=False)

  return apply_fn


@functools.lru_cache(maxsize=8)
def clean_apply(module: nn.Module, views: Views) -> ApplyFn:
  """`(variables, images u8[B, H, W, Ch]) -> logits[B, K]`, in eval mode.

  The same function for the same network, so that it is compiled once.
  """
  logits = eval_apply(module)
  return lambda variables, images: logits(variables, views.clean(images))


def _rows_of(step: chex.Array, rows: Batch) -> Batch:
  """One step's rows on this device, and their `position` in its batch."""
  # `index` and `weight` hold the epoch, of which this is one batch; an array
  # that travels holds one alone, which the remainder finds as well.
  rows = {
    name: lax.dynamic_index_in_dim(value, step % len(value), keepdims=False)
    for name, value in rows.items()
  }
  size = len(rows["index"])
  first = size * lax.axis_index(DATA_AXIS)
  return {**rows, "position": first + jnp.arange(size, dtype=jnp.int32)}


def _gather(resident: Batch, rows: Batch) -> Batch:
  return {**{k: v[rows["index"]] for k, v in resident.items()}, **rows}


def _augmented(key: chex.PRNGKey, batch: Batch, views: Views) -> Batch:
  images = augment.augment(
    key,
    batch["position"],
    batch["image"],
    pad=views.pad,
    flip=views.flip,
    cutout=views.cutout,
  )
  return {**batch, "image": views.clean(images)}


def _keys(key: chex.PRNGKey, position: chex.Array) -> chex.PRNGKey:
  """One for each row of a batch, from which the network leaves parts out."""
  own = jax.random.fold_in(key, _PARTS)
  return jax.vmap(jax.random.fold_in, (None, 0))(own, position)


def _mixed(
  key: chex.PRNGKey, batch: Batch, concentration: float, num_classes: int
) -> Batch:
  """Mixes every row with the next one of the global batch (mixup).

  The batch's order is random already, so the neighbour is a random partner. One
  coefficient serves the whole batch, the same on every device. Labels become
  probabilities.
  """
  batch = {**batch, "label": jax.nn.one_hot(batch["label"], num_classes)}
  own = jax.random.fold_in(key, _MIXING)
  coefficient = jax.random.beta(own, concentration, concentration)
  everyone = {
    name: lax.all_gather(value, DATA_AXIS, tiled=True)
    for name, value in batch.items()
    if name in ("image", "label", "teacher_probs", "unlabelled", "trust")
  }
  size = everyone["image"].shape[0]
  # Of the global batch, or the pairs would depend on the number of devices.
  partner = (batch["position"] + 1) % size
  mixed = {
    name: augment.mixup(batch[name], value[partner], coefficient)
    for name, value in everyone.items()
  }
  return {**batch, **mixed}


def _updated(state, optimizer, grads, batch_stats, average_decay):
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  average = state.average
  if average_decay is not None:
    average = averaging.ema_update(
      average,
      {"params": params, "batch_stats": batch_stats},
      decay=average_decay,
    )
  return TrainState(
    state.step + 1, params, batch_stats, opt_state, average, state.memory
  )


def _sums(learnt: _Learnt, batch, variables, opened) -> StepMetrics:
  labels, count = batch["label"], jnp.sum(batch["weight"])
  logits = learnt.logits
  if logits.ndim == 3:  # several networks at once: the first one counts
    logits = logits[:, 0]
  if labels.ndim == logits.ndim:  # mixed labels count by their larger part
    labels = jnp.argmax(labels, -1)
  correct = (jnp.argmax(logits, -1) == labels) * batch["weight"]
  # The new network as well: a finite loss can have a gradient that is not.
  finite = jnp.stack(
    [jnp.isfinite(x).all() for x in jax.tree.leaves((learnt.loss, variables))]
  ).all()
  return StepMetrics(
    learnt.loss,
    jnp.sum(correct),
    count,
    1.0 - finite.astype(jnp.float32),
    opened * count,
  )
