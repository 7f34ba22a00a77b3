"""Every method on the test points that no method was chosen on.

A method is either weights over the teacher's history or a list of networks
whose last predictions are averaged. Both end as probabilities `[N, K]`, and are
scored alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax
import jax
import ml_collections
import numpy as np
from etils import epath

import kfkd_jax
from kfkd_jax import averaging, files, forgetting, fusion, metrics, parallel
from kfkd_jax import config as config_lib
from kfkd_jax.data import order
from kfkd_jax.predictions import Subset
from kfkd_jax.stages import distill, experiment, fuse, networks


class Entry(NamedTuple):
  """A method ready to be scored.

  Attributes:
    method: its slug.
    probs: `[N, K]` on the test split.
    selected_on: the points that chose it; "" where nothing was chosen.
    num_members: networks run at inference.
    train_cost: in trainings of one network, all that the method needs.
    storage_cost: networks kept for inference.
    select_gain: gain over `final` on the selecting points; None if not chosen.
  """

  method: str
  probs: np.ndarray
  selected_on: str
  num_members: int
  train_cost: float
  storage_cost: float
  select_gain: float | None = None


def run(config: ml_collections.ConfigDict, workdir: epath.Path) -> str:
  """Writes `results.jsonl`, one row a method and fold; returns the table."""
  _train_independent(config, workdir)
  _make_soup(config, workdir)
  return parallel.on_main(_compare, config, workdir)


def _compare(config, workdir) -> str:
  task = experiment.load_task(config)
  rows = []
  origin = _origin(config)
  for number, fold in enumerate(task.folds):
    entries = [
      *_history_entries(config, workdir, number),
      *(_network_entries(config, workdir) if number == 0 else ()),
    ]
    split = "test" if len(task.folds) == 1 else f"test/{number}"
    scored = score(config, entries, fold.test_rows, split=split)
    rows += [{**row, **origin} for row in scored]
  files.write_json_lines(workdir / "results.jsonl", rows)
  return table(rows)


_NO_NUMBERS = ("bench", "report", "runtime")  # sections that decide none


def _origin(config) -> dict[str, Any]:
  """What made the numbers, for every row."""
  deciding = [section for section in config if section not in _NO_NUMBERS]
  return {
    "config_hash": files.digest(config_lib.subset(config, deciding)),
    "device_kind": jax.devices()[0].device_kind,
    "versions": {
      "kfkd_jax": kfkd_jax.__version__,
      "jax": jax.__version__,
      "flax": flax.__version__,
      "numpy": np.__version__,
    },
  }


def score(
  config: ml_collections.ConfigDict,
  entries: list[Entry],
  rows: np.ndarray,
  *,
  split: str,
) -> list[dict[str, Any]]:
  """One result row an entry, on the given rows of the test split."""
  task = experiment.load_task(config)
  labels = task.splits["test"].labels[rows]
  probs = [entry.probs[rows] for entry in entries]
  hits = np.stack([p.argmax(-1) == labels for p in probs])
  final = [e.method for e in entries].index("final")
  intervals = metrics.paired_bootstrap(
    0,
    hits,
    hits[final],
    num_samples=config.compare.bootstrap_samples,
    level=config.compare.level,
  )
  return [
    {
      "method": entry.method,
      "seed": config.seed,
      "split": split,
      "selected_on": entry.selected_on,
      "accuracy": float(hits[i].mean()),
      "accuracy_interval": [intervals.low[i], intervals.high[i]],
      "gain": float(hits[i].mean() - hits[final].mean()),
      "gain_interval": [intervals.gain_low[i], intervals.gain_high[i]],
      "nll": float(metrics.negative_log_likelihood(probs[i], labels)),
      "ece": float(metrics.calibration_error(probs[i], labels)),
      "brier": float(metrics.brier_score(probs[i], labels)),
      "num_examples": len(rows),
      "num_members": entry.num_members,
      "train_cost": round(entry.train_cost, 3),
      "inference_cost": entry.num_members,
      "storage_cost": entry.storage_cost,
      "select_gain": entry.select_gain,
    }
    for i, entry in enumerate(entries)
  ]


def table(rows: list[dict[str, Any]]) -> str:
  """The result rows for a terminal, in the order they come."""
  head = (
    f"{'method':<22}{'split':<8}{'accuracy':>9}{'gain':>8}"
    f"  {'95 % interval':<17}{'nll':>7}{'ece':>7}{'brier':>7}"
    f"{'train':>7}{'infer':>7}  chosen on"
  )
  lines = [head, "-" * len(head)]
  for row in rows:
    low, high = row["gain_interval"]
    lines.append(
      f"{row['method']:<22}{row['split']:<8}{row['accuracy']:>9.3f}"
      f"{row['gain']:>+8.3f}  [{low:+.3f}, {high:+.3f}] {row['nll']:>7.3f}"
      f"{row['ece']:>7.3f}{row['brier']:>7.3f}{row['train_cost']:>7.2f}"
      f"{row['inference_cost']:>7}  {row['selected_on'] or '-'}"
    )
  return "\n".join(lines)


def _history_entries(config, workdir, number: int) -> list[Entry]:
  """Everything that is a vector of weights over the teacher's history."""
  task = experiment.load_task(config)
  fold = task.folds[number]
  test = networks.predictions(workdir, experiment.TEACHER, "test")
  chosen = files.read_json(workdir / "fusion.json")["folds"][number]["methods"]
  kf = fuse.weights_of(workdir, "kf", number)
  unchosen = _unchosen(config, len(test), np.count_nonzero(kf), number)
  best, best_gain = _best_epoch(config, workdir, fold)
  selecting = {
    "best_epoch": (best, best_gain),
    **{m: (c["weights"], c["gain"]) for m, c in chosen.items()},
  }
  watching = 1 + _watching_cost(config, len(test), len(fold.select_rows))
  on = experiment.selected_on(config, fold)
  entries = [_weighted(m, w, test, "", 1.0, None) for m, w in unchosen.items()]
  return entries + [
    _weighted(m, w, test, on, watching, gain)
    for m, (w, gain) in selecting.items()
  ]


def _weighted(method, weights, store, on, cost, gain) -> Entry:
  weights = np.asarray(weights, np.float32)
  members = int(np.count_nonzero(weights))
  probs = np.asarray(fusion.fuse(store, weights))
  return Entry(method, probs, on, members, cost, members, gain)


def _unchosen(config, num_checkpoints, num_members, number):
  """Rules that look at no label, with as many members as KF."""
  key = jax.random.key(experiment.stream(config, "selection", number))
  counts = (num_checkpoints, int(num_members))
  return {
    "final": fusion.final_only(num_checkpoints),
    "horizontal": fusion.horizontal(*counts),
    "fixed_jumps": fusion.fixed_jumps(*counts),
    "random_epochs": fusion.random_checkpoints(key, *counts),
  }


def _best_epoch(config, workdir, fold) -> tuple[np.ndarray, float]:
  """Weights of the epoch best on the selecting points, and its gain there."""
  store = networks.predictions(workdir, experiment.TEACHER, fold.select_split)
  labels = experiment.selection_labels(
    config, experiment.load_task(config), fold
  )
  correct = forgetting.correctness(Subset(store, fold.select_rows), labels)
  accuracy = np.asarray(correct).mean(1)
  gain = float(accuracy.max() - accuracy[-1])
  return fusion.best_checkpoint(accuracy), gain


def _network_entries(config, workdir) -> list[Entry]:
  """Everything that is a network, or several, of its own."""
  task = experiment.load_task(config)
  on = experiment.selected_on(config, task.folds[0])
  num_checkpoints = len(networks.predictions(workdir, "teacher", "test"))
  watching = 1 + _watching_cost(
    config, num_checkpoints, len(task.folds[0].select_rows)
  )
  epochs = config.train.epochs
  entries = [
    _network("kf_soup", ["kf_soup"], workdir, on, watching + 1 / (3 * epochs))
  ]
  if config.train.average_decay is not None:
    entries.append(_network("ema", ["teacher_ema"], workdir, "", 1.0))
  if config.compare.independent > 1:
    runs = [experiment.TEACHER, *_independent_names(config)]
    entries.append(_network("independent", runs, workdir, "", len(runs)))
  for teacher in config.distill.teachers:
    name = distill.student_name(teacher)
    members = np.count_nonzero(fuse.weights_of(workdir, teacher))
    cost = watching + distill.train_cost(config, int(members))
    entries.append(_network(name, [name], workdir, on, cost))
  return entries


def _network(method, runs, workdir, on, cost) -> Entry:
  stores = [networks.predictions(workdir, name, "test") for name in runs]
  probs = np.mean([store[len(store) - 1] for store in stores], axis=0)
  return Entry(method, probs, on, len(runs), float(cost), len(runs))


def _watching_cost(config, num_checkpoints: int, num_select: int) -> float:
  """Predictions of the selecting points, in trainings of one network.

  A training step counts as three forward passes: one forward, two back.
  """
  num_train = len(experiment.load_task(config).given)
  forwards = num_checkpoints * num_select
  return forwards / (3 * num_train * config.train.epochs)


def _independent_names(config) -> list[str]:
  return [f"independent_{m}" for m in range(1, config.compare.independent)]


def _train_independent(config, workdir) -> None:
  """Trains what the ensemble needs beside the teacher, its first member."""
  for member, name in enumerate(_independent_names(config), start=1):
    plan = networks.Plan(
      name, lambda: networks.supervised(config), inputs={}, member=member
    )
    networks.train(config, workdir, plan)


def _make_soup(config, workdir) -> None:
  """KF's members averaged in weight space, BatchNorm estimated anew."""
  stacked, weights = networks.read_members(
    config, workdir, fuse.weights_of(workdir, "kf")
  )
  average = averaging.weighted_average(stacked, weights)
  task = experiment.load_task(config)
  views = experiment.make_views(config, task)
  module = experiment.make_module(config, task).clone(
    axis_name=None,
    norm_momentum=0.0,  # the statistics of a batch alone
  )

  @jax.jit
  def batch_stats(variables, images):
    _, updates = module.apply(
      variables, views.clean(images), train=True, mutable=["batch_stats"]
    )
    return updates.get("batch_stats", {})

  seeds = experiment.seeds_for(config)
  index, _ = order.epoch_batches(
    order.epoch_order(seeds.order, 0, len(task.images)),
    config.train.batch_size,
  )
  statistics = averaging.reestimate_batch_stats(
    batch_stats, average, (task.images[rows] for rows in index)
  )
  networks.store(
    config, workdir, "kf_soup", {**average, "batch_stats": statistics}
  )
