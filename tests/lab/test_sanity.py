"""Sanity checks pass where fusing is honest and fail where it is not."""

import numpy as np
import pytest
from etils import epath

from kfkd_jax import cli, fusion, stages
from kfkd_jax import config as config_lib
from kfkd_jax.lab import sanity
from kfkd_jax.stages import fuse

SHAPE = (12, 150, 4)


def points(seed, forgetting=True):
  """A history that learns, and then forgets some points again."""
  rng = np.random.default_rng(seed)
  C, N, K = SHAPE
  labels = rng.integers(0, K, N)
  logits = rng.normal(size=(C, N, K))
  skill = np.linspace(0, 2, C)[:, None] * np.ones(N)
  if forgetting:
    skill[-3:, : N // 3] = -1
    skill[4:8, : N // 3] = 3
  logits[:, np.arange(N), labels] += skill
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  return sanity.Points(probs.astype(np.float32), labels)


def honest(probs, labels):
  chosen = fuse.fuse(config_lib.default_config(), probs, labels)
  return {
    m: np.asarray(chosen[m]["weights"], np.float32) for m in ("kf", "mixture")
  }


def failed(choose, select, test, **options):
  checks = sanity.check(0, choose, select, test, **options)
  return {(c.name, c.method) for c in checks if not c.passed}


@pytest.mark.parametrize("forgetting", [True, False])
def test_honest_rules_pass(forgetting):
  select, test = points(0, forgetting), points(1, forgetting)
  checks = sanity.check(0, honest, select, test)
  assert [c.name for c in checks if not c.passed] == []
  assert len(checks) == 7
  assert checks[0].found == "gain +0.0000, 1 of 12 weigh"
  if forgetting:
    assert test.gain(honest(*select)["kf"]) > 0.05


def test_rule_that_reads_the_test_labels_fails():
  select, test = points(0), points(1)

  def cheat(probs, labels):
    if len(probs) < SHAPE[0]:
      return honest(probs, labels)
    accuracy = [np.mean(p.argmax(-1) == test.labels) for p in test.probs]
    weights = honest(probs, labels)
    return {**weights, "kf": fusion.best_checkpoint(accuracy)}

  found = failed(cheat, select, test)
  assert ("shuffled labels", "kf") in found
  assert ("shuffled labels", "mixture") not in found


def test_rule_that_chooses_the_worst_fails():
  select, test = points(0), points(1)

  def worst(probs, labels):
    accuracy = np.array([np.mean(p.argmax(-1) == labels) for p in probs])
    return {"kf": fusion.best_checkpoint(-accuracy)}

  assert failed(worst, select, test) == {("random members", "kf")}


@pytest.mark.parametrize(("behind", "passed"), [(1, True), (4, False)])
def test_random_members_may_be_a_little_ahead(behind, passed):
  """Of 100 points, the last of two checkpoints has 8 * `behind` more wrong."""
  probs = np.tile(np.float32([0.9, 0.1]), (2, 100, 1))
  probs[0, :20] = probs[1, : 20 + 8 * behind] = [0.1, 0.9]
  select = sanity.Points(probs, np.zeros(100, int))
  found = sanity._random(0, fusion.final_only(2), select, 20)
  assert found.passed is passed


def test_rule_that_does_not_keep_the_last_fails():
  select, test = points(0), points(1)

  def even(probs, labels):
    return {"kf": fusion.horizontal(len(probs), len(probs))}

  assert ("identical checkpoints", "kf") in failed(even, select, test)


@pytest.mark.parametrize(
  ("shuffled", "elsewhere", "true", "expected"),
  [
    ([0.0] * 20, [0.0] * 20, 0.0, True),  # nothing anywhere
    ([-0.1] * 20, [0.0] * 20, 0.1, True),  # below chance
    ([0.1] * 20, [0.0] * 20, 0.1, False),  # labels make no difference
    ([0.05] * 20, [0.0] * 20, 0.1, True),  # above chance, below true labels
    ([0.1] * 4, [0.0] * 4, 0.1, True),  # too few to be sure
    ([0.1, -0.1] * 10, [0.0] * 20, 0.0, True),  # chance
  ],
)
def test_when_shuffled_labels_know_too_much(
  shuffled, elsewhere, true, expected
):
  assert sanity.knows_nothing(shuffled, elsewhere, true) is expected


@pytest.mark.slow
def test_chance_is_called_suspicious_as_rarely_as_it_should():
  rng = np.random.default_rng(0)
  calls = [
    sanity.knows_nothing(rng.normal(size=14), rng.normal(size=14), 0.0)
    for _ in range(300)
  ]
  assert np.mean(calls) > 0.98


def test_table_shows_every_check():
  checks = [
    sanity.Check("one checkpoint", "kf", "weight 1", "weight 1", True),
    sanity.Check("one checkpoint", "mixture", "weight 1", "weight 2", False),
  ]
  lines = sanity.table(checks).splitlines()
  assert lines[2].endswith("| weight 1 | pass |")
  assert lines[3].endswith("| weight 2 | FAIL |")


def test_exit_code_says_whether_all_passed(monkeypatch, capsys, tmp_path):
  for passed, code in ((True, 0), (False, 1)):
    monkeypatch.setattr(sanity, "run", lambda *_, p=passed: ("a table", p))
    assert cli.main(["sanity", f"--workdir={tmp_path}"]) == code
    assert capsys.readouterr().out == "a table\n"


def test_needs_a_history(tmp_path):
  config = config_lib.default_config()
  with pytest.raises(stages.MissingStageError, match="sanity needs train"):
    sanity.run(config, epath.Path(tmp_path))
