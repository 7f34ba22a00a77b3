"""The training loop: one run, from fresh or resumed to its last epoch.

Teachers, students, independent networks and every strategy pass through `train`
and differ by the recipe and the objective.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from kfkd_jax import checkpoints, files, parallel, processes
from kfkd_jax.data import order
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.training import clock as clock_lib
from kfkd_jax.training import evaluation as evaluation_lib
from kfkd_jax.training import memory, retention
from kfkd_jax.training import step as step_lib
from kfkd_jax.training.clock import Clock
from kfkd_jax.training.evaluation import Split
from kfkd_jax.training.feed import Feed
from kfkd_jax.training.objective import Objective
from kfkd_jax.training.recipe import Recipe, Seeds
from kfkd_jax.training.state import TrainState, init_state, put
from kfkd_jax.training.termination import Terminated, Termination


class Trained(NamedTuple):
  """A finished network, as NumPy arrays.

  Attributes:
    variables: `{"params", "batch_stats"}` of the last checkpoint.
    average: their moving average, `{}` when none was kept.
  """

  variables: dict[str, Any]
  average: dict[str, Any]


class EpochReport(NamedTuple):
  """What an observer of the loop learns at the end of an epoch, or a part.

  Attributes:
    epoch: finished epochs, with a fraction where history is kept more often.
    epochs: of the whole run.
    metrics: `split/metric` -> value.
    steps_per_second: training steps alone.
  """

  epoch: float
  epochs: int
  metrics: dict[str, float]
  steps_per_second: float


# `(finished ticks, stores of the splits) -> arrays [N, ...]` of the training
# set, the same names and shapes each time.
Review = Callable[[int, dict[str, PredictionStore]], dict[str, np.ndarray]]


class Position(NamedTuple):
  """Where a run stands, between two steps.

  Attributes:
    state: after `finished` ticks and `len(fit)` steps of the next one.
    finished: ticks of the clock, trained and evaluated.
    fit: `f32[S, 5]` the `StepMetrics` of those steps.
  """

  state: TrainState
  finished: int
  fit: np.ndarray


def train(
  run: epath.Path,
  recipe: Recipe,
  objective: Objective,
  training_set: dict[str, Any],
  splits: dict[str, Split],
  *,
  seeds: Seeds,
  mesh: jax.sharding.Mesh,
  frozen: Any = None,
  init_from: Any = None,
  review: Review | None = None,
  observe: Callable[[EpochReport], None] = lambda report: None,
  wrap_step: Callable[[Any], Any] = lambda step: step,
  owner: Mapping[str, str] = types.MappingProxyType({}),
) -> Trained:
  """Trains one network in the folder `run`, continuing what is there.

  At each tick of the clock, such as an epoch's end, the splits' predictions go
  into the store and, when due, the network into `history/` and the full state
  into `resume/`. A run that was stopped anywhere continues to the same bits.
  SIGTERM saves the full state and raises `Terminated`; numbers that are not
  finite raise `DivergedError` before anything of their epoch is kept.

  Args:
    run: the run's folder.
    recipe: how to train.
    objective: what to learn.
    training_set: arrays with leading axis N: `image`, which may be `Stored`,
      `label`, and what the objective reads.
    splits: what to predict, by name.
    seeds: the random streams.
    mesh: from `parallel.data_mesh`.
    frozen: arrays handed to the objective's targets.
    init_from: `{"params", "batch_stats"}` to start from instead of fresh
      ones.
    review: what to learn from next, given what was predicted so far.
    observe: called after each tick.
    wrap_step: what to take each step through, such as `StepTrace.wrap`.
    owner: what its files say whose they are; see `Checkpoints`.

  Returns:
    What the last checkpoint holds.
  """
  _check_batch(recipe, mesh)
  clock = make_clock(recipe, len(training_set["label"]))
  with (
    Termination(mesh) as stop,
    retention.History(
      run, dtype=recipe.history_dtype, most=recipe.history_keep, owner=owner
    ) as history,
    checkpoints.Checkpoints(run / "resume", keep=2, owner=owner) as resume,
    _make_feed(training_set, recipe, clock, seeds, mesh) as feed,
  ):
    stores: dict[str, PredictionStore] = {}  # on the main process alone
    processes.on_main(_open_stores, stores, run, splits, recipe, owner)
    start = _initial_state(
      recipe, objective, seeds, training_set, init_from, mesh
    )
    at = _resumed(run, start, clock, history, resume, stores)
    # The history may be behind the stores: what a killed run predicted beyond
    # its last state is made again, to the same bits.
    processes.on_main(_truncate, stores, at.finished)
    at = at._replace(state=put(at.state, mesh))
    if objective.frozen_spec == parallel.REPLICATED:
      frozen = parallel.replicate(frozen, mesh)
    else:
      frozen = parallel.shard(frozen, mesh, objective.frozen_spec)
    resident = feed.resident
    run_tick = _make_tick(recipe, objective, clock, seeds, mesh, wrap_step)
    evaluation = evaluation_lib.Evaluation(recipe, clock, splits, stores, mesh)
    wanted = clock.kept_until(at.finished)
    evaluation.recall(history, wanted, at.state.variables)

    while at.finished < len(clock.ends):
      if review is not None:
        learnt = processes.arrays_from_main(review, at.finished, stores)
        resident = {**resident, **parallel.replicate(learnt, mesh)}
      at, rate = run_tick(at, frozen, resident, feed, stop)
      tick = at.finished + 1
      # Before anything of this tick is written.
      _check_finite(run, clock, at)
      last = tick == len(clock.ends)
      # What is predicted is what the checkpoint will hold; training itself goes
      # on in full precision.
      network = history.as_kept(at.state.variables, last=last)
      # Asked of all processes together, so that none waits in a collective for
      # one that has left.
      probs = None if stop.requested() else evaluation(network, stop)
      # Also where all steps of the tick are done: continued, the run takes none
      # and evaluates.
      if probs is None:
        _save(history, resume, at, clock)
        resume.wait()  # or what fails now would be lost
        epoch = clock.start(tick) // clock.steps_per_epoch + 1
        processes.say(
          f"{run.name}: stopped in epoch {epoch}; run again to continue"
        )
        raise Terminated
      keep = tick in clock.kept
      metrics = _fit_metrics(at.fit, objective)
      metrics |= evaluation.score(tick, probs, keep=keep)
      if keep:
        history.save(tick, network, last=last)
        evaluation.retain(history, tick)
      row = {"epoch": clock.epochs(tick), **metrics}
      processes.on_main(files.append_json_line, run / "metrics.jsonl", row)
      at = Position(at.state, tick, at.fit[:0])
      if tick in clock.saved:
        _save(history, resume, at, clock)
      observe(EpochReport(clock.epochs(tick), recipe.epochs, metrics, rate))

  return parallel.to_host(Trained(at.state.variables, at.state.average))


def _make_tick(recipe, objective, clock, seeds, mesh, wrap_step):
  """Builds `run_tick(position, frozen, resident, feed, stop)`.

  It gives the new position and the steps taken in a second.

  It takes the steps of one tick, or what is left of them, or fewer if asked to
  stop; the ticks of an epoch make one exact pass.
  """
  step = step_lib.map_train_step(
    step_lib.make_train_step(
      recipe.module,
      recipe.optimizer,
      objective,
      recipe.views,
      average_decay=recipe.average_decay,
      micro_batches=recipe.micro_batches,
    ),
    mesh,
    frozen=objective.frozen_spec,
  )
  step = wrap_step(step)
  seed = parallel.replicate(np.uint32(seeds.augment), mesh)

  def run_tick(at, frozen, resident, feed, stop):
    begin = clock.start(at.finished + 1) + len(at.fit)
    steps = range(begin, clock.ends[at.finished])
    in_flight = parallel.InFlight(parallel.in_flight_limit())
    state, sums = at.state, []
    started = time.perf_counter()
    for rows in feed(steps):
      if stop.requested_before():
        break
      state, metrics = step(state, frozen, resident, rows, seed)
      metrics.copy_to_host_async()
      in_flight.add(metrics)
      sums.append(metrics)
    # Or the rate would be that of dispatching.
    in_flight.drain()
    rate = len(sums) / (time.perf_counter() - started)
    fit = np.array(parallel.to_host(sums), np.float32).reshape(-1, _FIT_COLUMNS)
    return Position(state, at.finished, np.concatenate([at.fit, fit])), rate

  return run_tick


def _make_feed(training_set, recipe, clock, seeds, mesh) -> Feed:
  return Feed(
    training_set,
    batch_size=recipe.batch_size,
    order_seed=seeds.order,
    view_seed=seeds.augment,
    num_steps=clock.ends[-1],
    views=recipe.random_views,
    workers=recipe.workers,
    mesh=mesh,
  )


def make_clock(recipe: Recipe, count: int) -> Clock:
  """The clock of a run on `count` training examples."""
  return clock_lib.make_clock(
    recipe.epochs,
    order.num_batches(count, recipe.batch_size),
    every=recipe.history_every,
    unit=recipe.history_unit,
    resume_every=recipe.resume_every,
  )


def _initial_state(
  recipe, objective, seeds, training_set, init_from, mesh
) -> TrainState:
  remembered = None
  if objective.memory is not None:
    rows = objective.memory.init(
      training_set["label"], recipe.module.num_classes
    )
    remembered = memory.padded(rows, mesh)
  state = init_state(
    recipe.module,
    recipe.optimizer,
    jax.random.key(seeds.model),
    training_set["image"][:1],
    keep_average=recipe.average_decay is not None,
    memory=remembered,
  )
  if init_from is not None:
    state = state._replace(**init_from)
    if recipe.average_decay is not None:
      state = state._replace(average=init_from)
  return state


def _resumed(run, state, clock: Clock, history, resume, stores) -> Position:
  """The newest position that the history supports, or the start."""
  start = Position(state, 0, np.zeros((0, _FIT_COLUMNS), np.float32))
  # Newest first. A state counts only if all that it builds on is there: the
  # kept checkpoints up to it, and of dropped ones the predictions.
  template = jax.tree.map(np.asarray, _packed(start, clock))
  at, number = start, 0
  for number in reversed(resume.steps()):
    try:
      at = _unpacked(resume.restore(number, template), clock)
    except checkpoints.DamagedCheckpointError as error:
      processes.say(f"{error}; going back to an older one")
      continue
    wanted = clock.kept_until(at.finished)
    missing = processes.on_main(_missing, history, stores, wanted)
    if not missing:
      break
    processes.say(f"{history.path} lacks {missing}; going back to before them")
  # No state served, or there was none.
  else:
    at, number = start, 0
    if history.steps():
      processes.say(f"{run.name}: nothing to continue from, starting again")
  # Whatever came later is of a future that is now trained again.
  history.restart(at.finished)
  resume.delete_after(number)
  done = clock.epochs(at.finished) if at.finished else 0
  processes.on_main(_truncate_metrics, run, done)
  return at


def _truncate_metrics(run: epath.Path, done: float) -> None:
  path = run / "metrics.jsonl"
  if files.exists(path):
    rows = files.read_json_lines(path)
    files.write_json_lines(path, [r for r in rows if r["epoch"] <= done])


_FIT_COLUMNS = len(step_lib.StepMetrics._fields)


def _packed(at: Position, clock: Clock) -> dict[str, Any]:
  """A position as arrays of fixed shapes."""
  # A checkpoint needs shapes known before it is read, so the sums of a tick
  # that is not finished are padded to the longest tick; the step says how many
  # count.
  longest = max(np.diff((0, *clock.ends)))
  fit = np.zeros((longest, _FIT_COLUMNS), np.float32)
  fit[: len(at.fit)] = at.fit
  return {"state": at.state, "finished": np.int32(at.finished), "fit": fit}


def _unpacked(tree: dict[str, Any], clock: Clock) -> Position:
  finished = int(tree["finished"])
  steps = int(tree["state"].step) - clock.start(finished + 1)
  return Position(tree["state"], finished, tree["fit"][:steps])


def _save(history, resume, at: Position, clock: Clock) -> None:
  number = clock.start(at.finished + 1) + len(at.fit)
  # A resumed run must find all that came before it.
  resume.save(number, _packed(at, clock), after=history.wait)


def _open_stores(stores, run, splits, recipe, owner) -> None:
  for name, split in splits.items():
    stores[name] = PredictionStore.create(
      run / "predictions" / name,
      split.labels,
      split.ids,
      num_classes=recipe.module.num_classes,
      dtype=recipe.prediction_dtype,
      owner={**owner, "split": name},
    )


def _missing(history, stores, wanted: list[int]) -> list[int]:
  """Which ticks neither the history nor the stores can make up for."""
  missing = history.missing(wanted)
  for store in stores.values():  # what was dropped cannot predict again
    missing += [e for e in history.gone(wanted) if not store.is_whole(e)]
  return missing


def _truncate(stores: dict[str, PredictionStore], finished: int) -> None:
  for store in stores.values():
    store.truncate(finished)


def _check_finite(run, clock: Clock, at: Position) -> None:
  broken = np.flatnonzero(step_lib.StepMetrics(*at.fit.T).broken)
  if len(broken):
    epoch, place = divmod(
      clock.start(at.finished + 1) + int(broken[0]), clock.steps_per_epoch
    )
    raise evaluation_lib.DivergedError(
      f"{run}: the loss or the network is not finite after epoch {epoch + 1}, "
      f"step {place + 1} of {clock.steps_per_epoch}; {evaluation_lib.REMEDY}"
    )


def _fit_metrics(fit: np.ndarray, objective: Objective) -> dict[str, float]:
  total = step_lib.StepMetrics(*(float(column.sum()) for column in fit.T))
  metrics = {
    "fit/loss": total.loss / total.count,
    "fit/accuracy": total.correct / total.count,
  }
  if objective.gate is not None:
    metrics["fit/gate"] = total.gated / total.count
  return metrics


def _check_batch(recipe: Recipe, mesh: jax.sharding.Mesh) -> None:
  shares = mesh.shape[parallel.DATA_AXIS]
  if recipe.batch_size % (shares * recipe.micro_batches):
    among = f"{shares} devices"
    if recipe.micro_batches > 1:
      among += f" times {recipe.micro_batches} micro-batches"
    raise ValueError(
      f"batch_size {recipe.batch_size} does not divide over {among}"
    )
