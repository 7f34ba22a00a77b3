"""Whether fusing finds something where there is nothing to find.

Checks on a teacher's stored history, without any training: what must come out
when all checkpoints are the same one, when there is only one, when the
selecting labels mean nothing, and when members are drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import files, fusion, lock, stages, statistics
from kfkd_jax.predictions import Subset
from kfkd_jax.run import (
  results,
  streams,
  tasks,
  workspace,
)
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import fuse

Choose = Callable[[Any, np.ndarray], dict[str, np.ndarray]]
_SURE = 1e-3  # chance of calling honest weights suspicious, at most
_RARE = 0.05


class Check(NamedTuple):
  """One line of the table.

  Attributes:
    name: of the check.
    method: that was checked.
    expected: what must come out.
    found: what came out.
    passed: whether it did.
  """

  name: str
  method: str
  expected: str
  found: str
  passed: bool


class Points(NamedTuple):
  """Predictions and labels of some points.

  Attributes:
    probs: `[C, N, K]`, read a checkpoint at a time.
    labels: `[N]`.
  """

  probs: Any
  labels: np.ndarray

  def accuracy(self, weights: np.ndarray) -> float:
    """Of the fused checkpoints."""
    fused = np.asarray(fusion.fuse(self.probs, weights))
    return float(np.mean(fused.argmax(-1) == self.labels))

  def gain(self, weights: np.ndarray) -> float:
    """Of the fused checkpoints over the last one."""
    return self.accuracy(weights) - self.accuracy(
      fusion.final_only(len(weights))
    )


def run(
  config: ml_collections.ConfigDict, workdir: epath.Path
) -> tuple[str, bool]:
  """Checks the first fold; returns the table and whether all passed.

  Writes `sanity.json`.
  """
  workdir = epath.Path(workdir)
  with lock.held(workdir):
    stages.check_ran(Workspace(config, workdir), "sanity", "train")
    task = tasks.load_task(config)
    fold = task.folds[0]
    labels = workspace.selection_labels(Workspace(config), fold)
    store = results.predictions(workdir, workspace.TEACHER, fold.select_split)
    test = results.predictions(workdir, workspace.TEACHER, "test")

    def choose(probs, labels) -> dict[str, np.ndarray]:
      told = workspace.told_noise(config, task.transition, probs, labels)
      chosen = fuse.fuse(config, probs, labels, transition=told)
      return {
        method: np.asarray(chosen[method]["weights"], np.float32)
        for method in ("kf", "mixture")
      }

    checks = check(
      streams.stream(config, "selection"),
      choose,
      Points(Subset(store, fold.select_rows), labels),
      Points(Subset(test, fold.test_rows), test.labels[fold.test_rows]),
    )
    content = {"checks": [c._asdict() for c in checks]}
    files.write_json(workdir / "sanity.json", content)
  return table(checks), all(c.passed for c in checks)


def check(
  seed: int,
  choose: Choose,
  select: Points,
  test: Points,
  *,
  num_draws: int = 20,
) -> list[Check]:
  """All checks of the rules that `choose` applies.

  Args:
    seed: of shuffles and random members.
    choose: `(probs[C, S, K], labels[S])` to weights `[C]` by method; `kf` is
      one of them.
    select: the points that choose.
    test: others.
    num_draws: shuffles, and draws of random members.
  """
  return [
    *_identical(choose, select, test),
    *_single(choose, select),
    *_shuffled(seed, choose, select, test, num_draws),
    _random(seed, choose(select.probs, select.labels)["kf"], select, num_draws),
  ]


def _identical(choose: Choose, select: Points, test: Points) -> list[Check]:
  """The last checkpoint in every place: nothing to gain."""
  count = select.probs.shape[0]
  same = _repeated(select.probs, count)
  same_test = test._replace(probs=_repeated(test.probs, count))
  checks = []
  for method, weights in choose(same, select.labels).items():
    gain = same_test.gain(weights)
    found = f"gain {gain:+.4f}, {np.count_nonzero(weights)} of {count} weigh"
    expected, passed = "gain 0", gain == 0
    if method == "kf":
      expected += ", the last alone"
      passed = passed and bool(weights[-1] == 1)
    checks.append(
      Check("identical checkpoints", method, expected, found, passed)
    )
  return checks


def _single(choose: Choose, select: Points) -> list[Check]:
  """A history of the last checkpoint alone."""
  return [
    Check(
      "one checkpoint",
      method,
      "weight 1",
      f"weight {weights[0]:g}",
      weights.shape == (1,) and bool(np.isclose(weights[0], 1)),
    )
    for method, weights in choose(
      _repeated(select.probs, 1), select.labels
    ).items()
  ]


def _repeated(probs: Any, count: int) -> np.ndarray:
  """The last checkpoint, so many times, without copies."""
  last = np.asarray(probs[probs.shape[0] - 1])
  return np.broadcast_to(last, (count, *last.shape))


def _shuffled(
  seed: int, choose: Choose, select: Points, test: Points, num_draws: int
) -> list[Check]:
  """Selecting labels in another order: no knowledge of the test points.

  What such weights gain on the test points is averaging alone, which the same
  weights at random places of the history do as well. They may do better than
  that where early checkpoints happen to be good and stand out; but then they
  still fall short of the true labels.
  """
  generator = np.random.default_rng((seed, 0))
  shuffled: dict[str, list[float]] = {}
  elsewhere: dict[str, list[float]] = {}
  for _ in range(num_draws):
    labels = generator.permutation(select.labels)
    for method, weights in choose(select.probs, labels).items():
      moved = generator.permutation(weights)
      shuffled.setdefault(method, []).append(test.gain(weights))
      elsewhere.setdefault(method, []).append(test.gain(moved))
  true = {
    method: test.gain(weights)
    for method, weights in choose(select.probs, select.labels).items()
  }
  return [
    Check(
      "shuffled labels",
      method,
      "gain as at random places, or below true labels",
      f"gain {_spread(gains)}; at random places {_spread(elsewhere[method])}; "
      f"true labels {true[method]:+.4f}",
      knows_nothing(gains, elsewhere[method], true[method]),
    )
    for method, gains in shuffled.items()
  ]


def knows_nothing(
  shuffled: Sequence[float], elsewhere: Sequence[float], true: float
) -> bool:
  """Whether weights from shuffled labels look as if they knew nothing.

  Args:
    shuffled: gains of such weights, one a shuffle.
    elsewhere: gains of the same weights at random places.
    true: gain of the weights from the true labels.

  Returns:
    False where they gain more than at random places, beyond chance, and true
    labels do not clearly gain more.
  """
  more = np.subtract(shuffled, elsewhere)
  above = more.mean() > 0 and statistics.sign_flip_p_value(0, more) < _SURE
  as_good = (1 + np.sum(np.asarray(shuffled) >= true)) / (1 + len(shuffled))
  return not (above and as_good > _RARE)


def _random(
  seed: int, weights: np.ndarray, select: Points, num_draws: int
) -> Check:
  """As many random checkpoints, on the points that chose KF's.

  Random ones may come out a little ahead, where much is gained by averaging
  and few labels, or noisy ones, choose: two standard errors are granted.
  """
  chosen = select.accuracy(weights)
  error = float(np.sqrt(chosen * (1 - chosen) / len(select.labels)))
  counts = len(weights), int(np.count_nonzero(weights))
  keys = jax.random.split(jax.random.key(seed), num_draws)
  drawn = [
    select.accuracy(np.asarray(fusion.random_checkpoints(key, *counts)))
    for key in keys
  ]
  return Check(
    "random members",
    "kf",
    "chosen ones not clearly worse where they were chosen",
    f"accuracy {chosen:.4f} ± {error:.4f}; random {_spread(drawn, '')}",
    chosen + 2 * error >= float(np.mean(drawn)),
  )


def _spread(values: Sequence[float], sign: str = "+") -> str:
  return (
    f"{np.mean(values):{sign}.4f} ({min(values):{sign}.4f} to "
    f"{max(values):{sign}.4f})"
  )


def table(checks: Sequence[Check]) -> str:
  """The checks for a terminal, as Markdown."""
  lines = [
    "| check | method | expected | found | |",
    "| --- | --- | --- | --- | --- |",
  ]
  for c in checks:
    verdict = "pass" if c.passed else "FAIL"
    lines.append(
      f"| {c.name} | {c.method} | {c.expected} | {c.found} | {verdict} |"
    )
  return "\n".join(lines)
