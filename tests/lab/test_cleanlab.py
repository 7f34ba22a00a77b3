"""The comparison with cleanlab, without it: `.ci/cleanlab`."""

import importlib.machinery
import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from kfkd_jax import auditing, files

PATH = pathlib.Path(__file__).parents[2] / ".ci" / "cleanlab"

# Says what it was asked, in the place of cleanlab.
FILTER = """
def find_label_issues(labels, probs):
  return probs.argmax(1) != labels
"""
RANK = """
def get_label_quality_scores(labels, probs, *, method, adjust_pred_probs):
  assert not (adjust_pred_probs and method == "confidence_weighted_entropy")
  own = probs[range(len(labels)), labels]
  return own / 2 if adjust_pred_probs else own
"""


@pytest.fixture(scope="module")
def cleanlab():
  loader = importlib.machinery.SourceFileLoader("ci_cleanlab", str(PATH))
  module = importlib.util.module_from_spec(
    importlib.util.spec_from_loader(loader.name, loader)
  )
  loader.exec_module(module)
  return module


class History(list):
  """Predictions of a network and the right labels, as a store has them."""

  def __init__(self, probs, labels):
    super().__init__(probs)
    self.labels, self.shape, self.ndim = labels, probs.shape, probs.ndim


def test_scores_go_to_cleanlab_and_back_and_are_judged_by_us(
  cleanlab, tmp_path
):
  rng = np.random.default_rng(0)
  right = rng.integers(3, size=60).astype(np.int32)
  given = right.copy()
  given[:12] = (given[:12] + 1) % 3
  probs = rng.dirichlet(np.ones(3), (4, 60)) + 0.5 * np.eye(3)[right]
  probs = (probs / probs.sum(-1, keepdims=True)).astype(np.float32)
  stub = tmp_path / "cleanlab"
  stub.mkdir()
  for name, text in (("__init__", ""), ("filter", FILTER), ("rank", RANK)):
    (stub / f"{name}.py").write_text(text)
  told, theirs = tmp_path / "told.npz", tmp_path / "theirs.npz"
  files.write_npz(told, probs=probs[-1:], labels=given, ids=np.arange(60))
  subprocess.run(
    [sys.executable, "-c", cleanlab.THEIRS, told, theirs],
    env={**os.environ, "PYTHONPATH": str(tmp_path)},
    check=True,
  )
  found = files.read_npz(theirs)
  own = probs[-1][np.arange(60), given]
  np.testing.assert_array_equal(found["self_confidence"], -own)
  np.testing.assert_array_equal(found["normalized_margin, adjusted"], -own / 2)
  history = History(probs, right)
  scores, named = cleanlab.judged(history, files.read_npz(told), found)
  by_name = {row.pop("score"): row for row in scores}
  wrong = given != right
  expected = {
    "history: ours": auditing.audit(probs, given).score,
    "history: aum": auditing.audit(probs, given).scores.aum,
    "folds: ours": auditing.audit(probs[-1:], given).score,
    "folds: cleanlab self_confidence": -own,
  }
  for name, values in expected.items():
    assert by_name[name] == auditing.judge(values, wrong)._asdict()
  (row,) = [row for row in named if row["named by"] == "folds: cleanlab"]
  mask = probs[-1].argmax(1) != given
  assert row["named"] == mask.mean()
  assert row["precision"] == wrong[mask].mean()
  assert row["recall"] == mask[wrong].mean()
