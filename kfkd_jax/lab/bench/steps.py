"""Training steps against their floors: written out by hand, nothing around."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import history, models, parallel
from kfkd_jax.data import Stored, augment, order
from kfkd_jax.lab.bench import measure
from kfkd_jax.run import build, tasks
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import evaluation, loop, objective, step
from kfkd_jax.training.state import init_state, put


class Setting(NamedTuple):
  """What every step here shares.

  Attributes:
    task: the data.
    recipe: how the configuration trains.
    mesh: one device, or as many as were asked for.
    resident: the training set on them.
    rows: of an epoch's batches, host arrays.
    compute: floating point operations of a forward pass of one image.
  """

  task: tasks.Task
  recipe: loop.Recipe
  mesh: jax.sharding.Mesh
  resident: dict[str, jax.Array]
  rows: dict[str, np.ndarray]
  compute: float


def setting(config: ml_collections.ConfigDict, num_devices: int = 1) -> Setting:
  """The configured training, ready to take steps; without mixup."""
  task = tasks.load_task(config)
  if isinstance(task.images, Stored):
    raise config_lib.ConfigError(
      "kfkd bench measures images in memory, but those of data.name="
      f"{config.data.name!r} stay on disk; set data.stream='never' and leave "
      "out augment.crop_scale and augment.rand_ops"
    )
  space = Workspace(config)
  recipe = build.make_recipe(space, keep_history=True)
  recipe = recipe._replace(views=recipe.views._replace(mixup=0.0))
  mesh = parallel.data_mesh(jax.devices()[:num_devices])
  index, weight = order.epoch_batches(
    order.epoch_order(0, 0, len(task.given)), recipe.batch_size
  )
  uniform = np.full((len(task.given), task.num_classes), 1 / task.num_classes)
  training = {
    "image": task.images,
    "label": task.given,
    "teacher_probs": uniform.astype(np.float32),
  }
  resident = parallel.replicate(training, mesh)
  rows = {"index": index, "weight": weight}
  compute = build.network_size(space).compute
  return Setting(task, recipe, mesh, resident, rows, compute)


def make_steps(
  at: Setting, lesson: objective.Objective, frozen: Any, count: int
) -> Callable[[], Any]:
  """Builds a call that takes `count` of the loop's own steps."""
  fn = step.map_train_step(
    step.make_train_step(
      at.recipe.module, at.recipe.optimizer, lesson, at.recipe.views
    ),
    at.mesh,
    frozen=lesson.frozen_spec,
  )
  state = put(jax.tree.map(np.asarray, _fresh(at, at.recipe.module)), at.mesh)
  frozen = parallel.replicate(frozen, at.mesh)
  seed = parallel.replicate(np.uint32(0), at.mesh)

  def run():
    nonlocal state
    in_flight = parallel.InFlight(parallel.in_flight_limit())
    rows = parallel.shard(at.rows, at.mesh, parallel.BATCHES)
    for _ in range(count):
      state, metrics = fn(state, frozen, at.resident, rows, seed)
      in_flight.add(metrics)
    in_flight.drain()
    return metrics

  return run


def make_bare_steps(
  at: Setting, count: int, *, networks: int | None = None
) -> Callable[[], Any]:
  """Builds a call of `count` steps as one would write them for this model.

  The same images, views and optimiser on one device, other views in each step,
  and nothing else: no fill rows, no sums, no check of the numbers.

  Args:
    at: what is trained.
    count: steps of a call.
    networks: so many at once, one program mapped over them; None for one.
  """
  module = at.recipe.module.clone(axis_name=None)
  optimizer, views = at.recipe.optimizer, at.recipe.views
  images, labels = jax.device_put((at.task.images, at.task.given))

  def bare(params, batch_stats, opt_state, number, key, index):
    positions = jnp.arange(len(index))
    batch = augment.augment(
      jax.random.fold_in(key, number), positions, images[index],
      pad=views.pad, flip=views.flip, cutout=views.cutout,
    )  # fmt: skip

    def loss_fn(params):
      logits, updates = module.apply(
        {"params": params, "batch_stats": batch_stats},
        views.clean(batch),
        train=True,
        mutable=["batch_stats"],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, labels[index]
      )
      return losses.mean(), updates.get("batch_stats", {})

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, stats, opt_state, number + 1, loss

  fresh = jax.tree.map(jnp.array, _fresh(at, module))
  state = (fresh.params, fresh.batch_stats, fresh.opt_state, jnp.int32(0))
  key, index = jax.random.key(0), at.rows["index"][0]
  if networks is not None:
    bare = jax.vmap(bare)
    state = jax.tree.map(lambda x: jnp.stack([x] * networks), state)
    key = jax.random.split(key, networks)
    index = np.stack([index] * networks)
  fn = jax.jit(bare, donate_argnums=(0, 1, 2, 3))

  def run():
    nonlocal state
    in_flight = parallel.InFlight(parallel.in_flight_limit())
    for _ in range(count):
      *state, loss = fn(*state, key, index)
      in_flight.add(loss)
    in_flight.drain()
    return loss

  return run


def _fresh(at: Setting, module: nn.Module):
  return init_state(
    module, at.recipe.optimizer, jax.random.key(0), at.task.images[:1]
  )


def measure_steps(config_json: str) -> list[dict[str, Any]]:
  """The loop's step against its floor, and what it makes of the machine."""
  config = ml_collections.ConfigDict(json.loads(config_json))
  at, count = setting(config), config.bench.steps
  seconds = measure.in_turns(
    {
      "bare": make_bare_steps(at, count),
      "plain": make_steps(at, objective.supervised(), None, count),
    },
    config.bench.rounds,
  )
  # A backward pass takes two forward ones.
  work = 3 * at.compute * at.recipe.batch_size * count
  rate = work / measure.typical(seconds["plain"])
  name = f"train step of {at.recipe.batch_size}, {config.model.dtype}"
  return [
    measure.row(
      name,
      "bare jitted step",
      seconds["plain"],
      seconds["bare"],
      count,
      limit=1.03,
    ),
    {
      "name": f"{name}, share of peak",
      "reference": "measured matrix product",
      "ratio": rate / measure.peak_flops(config.model.dtype),
    },
  ]


def measure_distillation(config_json: str) -> list[dict[str, Any]]:
  """Distilling steps, each against a plain one and what the teachers take."""
  config = ml_collections.ConfigDict(json.loads(config_json))
  at, count = setting(config), config.bench.steps
  members = config.bench.members
  teachers = stacked_teachers(at, members)
  apply_fn = step.eval_apply(at.recipe.module)
  frozen = {
    "stacked": teachers,
    "weights": np.full(members, 1 / members, "f"),
  }
  seconds = measure.in_turns(
    {
      "plain": make_steps(at, objective.supervised(), None, count),
      "cached": make_steps(at, objective.cached_distillation(), None, count),
      "live": make_steps(
        at, objective.live_distillation(apply_fn), frozen, count
      ),
      "teachers": make_teacher_passes(at, apply_fn, teachers, count),
    },
    config.bench.rounds,
  )
  floor = [
    a + b for a, b in zip(seconds["plain"], seconds["teachers"], strict=True)
  ]
  return [
    measure.row(
      "cached distillation step",
      "plain step",
      seconds["cached"],
      seconds["plain"],
      count,
      limit=1.05,
    ),
    measure.row(
      f"live distillation step, {members} teachers",
      f"{members} forwards and a plain step",
      seconds["live"],
      floor,
      count,
      limit=1.10,
    ),
  ]


def measure_together(config_json: str) -> list[dict[str, Any]]:
  """Several networks in one program, against each by itself."""
  config = ml_collections.ConfigDict(json.loads(config_json))
  at, count = setting(config), config.bench.steps
  members = config.bench.members
  seconds = measure.in_turns(
    {
      "bare": make_bare_steps(at, count),
      "together": make_bare_steps(at, count, networks=members),
    },
    config.bench.rounds,
  )
  return [
    measure.row(
      f"step of {members} networks in one program",
      "their bare steps in turn",
      seconds["together"],
      [members * s for s in seconds["bare"]],
      count,
    )
  ]


def stacked_teachers(at: Setting, count: int) -> dict[str, Any]:
  """Freshly drawn networks `[M, ...]`, as NumPy."""
  return history.stack_checkpoints([
    jax.tree.map(
      np.asarray,
      models.init(at.recipe.module, jax.random.key(m), at.task.images[:1]),
    )
    for m in range(count)
  ])  # fmt: skip


def make_teacher_passes(
  at: Setting, apply_fn, stacked, count: int
) -> Callable[[], Any]:
  """Builds a call of `count` times M forward passes over a device's share."""
  members = [
    jax.device_put(member) for member in history.unstack_checkpoints(stacked)
  ]
  share = at.recipe.batch_size // at.mesh.size
  images = at.recipe.views.clean(at.task.images[at.rows["index"][0, :share]])
  one = jax.jit(apply_fn)

  def run():
    in_flight = parallel.InFlight(parallel.in_flight_limit())
    for _ in range(count):
      in_flight.add([one(member, images) for member in members])
    in_flight.drain()

  return run


def measure_stage(config_json: str) -> list[dict[str, Any]]:
  """Whole epochs of `loop.train`, against bare steps and bare passes.

  Some epochs and their floors take turns. Of what is saved in the background
  during such epochs only the last save may end in the pause after them.
  """
  config = ml_collections.ConfigDict(json.loads(config_json))
  at, epochs = setting(config), config.bench.epochs
  clock = loop.make_clock(at.recipe, len(at.task.given))
  splits = build.predicted_splits(Workspace(config))
  floors = {
    "steps": make_bare_steps(at, clock.steps_per_epoch),
    "passes": make_bare_passes(at, splits),
  }
  for floor in floors.values():
    floor()
  seconds: dict[str, list[float]] = {"stage": [], "steps": [], "passes": []}
  started = 0.0

  def observe(report: loop.EpochReport) -> None:
    nonlocal started
    if report.epoch % epochs:
      return
    if report.epoch > epochs:  # the first ones compile
      seconds["stage"].append(time.perf_counter() - started)
      time.sleep(_PAUSE)
      for name, floor in floors.items():
        started = time.perf_counter()
        for _ in range(epochs):
          floor()
        seconds[name].append(time.perf_counter() - started)
    started = time.perf_counter()

  recipe = at.recipe._replace(epochs=epochs * (config.bench.rounds + 1))
  with tempfile.TemporaryDirectory() as folder:
    loop.train(
      epath.Path(folder) / "teacher",
      recipe,
      objective.supervised(),
      {"image": at.task.images, "label": at.task.given},
      splits,
      seeds=loop.Seeds(0, 0, 0),
      mesh=at.mesh,
      observe=observe,
    )
  both = np.add(seconds["steps"], seconds["passes"]).tolist()
  predicted = sum(len(split.labels) for split in splits.values())
  name = "epoch with history and predictions"
  return [
    measure.row(
      name,
      "bare steps",
      seconds["stage"],
      seconds["steps"],
      epochs,
      limit=1.20,
    ),
    measure.row(
      name,
      f"bare steps and {predicted} bare predictions",
      seconds["stage"],
      both,
      epochs,
    ),
  ]


_PAUSE = 0.5  # seconds in which the last save ends


def make_bare_passes(at: Setting, splits: dict[str, evaluation.Split]):
  """Builds a call that predicts every split once, with no store."""
  logits_of = step.eval_apply(at.recipe.module)
  apply_fn = jax.jit(
    lambda variables, images: jax.nn.softmax(
      logits_of(variables, at.recipe.views.clean(images))
    )
  )
  variables = models.init(
    at.recipe.module, jax.random.key(0), at.task.images[:1]
  )
  images = [jax.device_put(split.images) for split in splits.values()]

  def run():
    return [
      np.asarray(apply_fn(variables, part[start : start + size]))
      for part in images
      for size in (at.recipe.evaluation_batch,)
      for start in range(0, len(part), size)
    ]

  return run
