"""Odd but possible: one class, two classes, one epoch, very few examples."""

import numpy as np
import pytest
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import files, stages
from kfkd_jax.stages import diagnose, fuse


def make_probs(num_classes, seed=0):
  rng = np.random.default_rng(seed)
  return rng.dirichlet(np.ones(num_classes), (5, 12)).astype(np.float32)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("last", [0, 1])
def test_selecting_points_of_one_class(num_classes, last):
  """Every class but one is absent; all are right at the end, or none."""
  probs = make_probs(num_classes)
  probs[-1] = np.eye(num_classes, dtype=np.float32)[last]
  labels = np.zeros(12, np.int32)
  methods = fuse.fuse(config_lib.default_config(), probs, labels)
  for method in methods.values():
    assert np.sum(method["weights"]) == pytest.approx(1, abs=1e-5)
    assert method["accuracy"] >= (last == 0)
  split = diagnose.diagnose(probs, labels, num_classes)
  assert split["num_wrong_at_end"] == (0 if last == 0 else 12)
  assert files.to_json({"split": split, "methods": methods})


def test_one_checkpoint_is_returned_unchanged():
  probs = make_probs(3)[:1]
  methods = fuse.fuse(
    config_lib.default_config(), probs, np.zeros(12, np.int32)
  )
  for method in methods.values():
    np.testing.assert_allclose(method["weights"], [1])
    assert method["gain"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {"data.name": "synthetic/num_classes=2,num_train=24,num_test=6"},
    {"train.epochs": "1"},
    {"data.num_train": "7", "train.batch_size": "8"},  # classes are absent
    {"selection.num": "1"},
    {"predictions.train": "False", "noise.kind": "symmetric"},
  ],
)
def test_the_whole_path(tmp_path, changes):
  config = config_lib.default_config()
  small = {
    "data.num_train": "16",
    "selection.num": "8",
    "model.name": "mlp",
    "model.width": "4",
    "train.epochs": "2",
    "train.batch_size": "16",
    "compare.independent": "2",
    "compare.bootstrap_samples": "100",
    "report.num_examples": "1",
  }
  for key, text in (small | changes).items():
    config_lib.override(config, key, text)
  config_lib.validate(config)
  assert stages.run(config, epath.Path(tmp_path), say=lambda line: None)
  rows = files.read_json_lines(epath.Path(tmp_path) / "results.jsonl")
  for row in rows:
    assert 0 <= row["accuracy"] <= 1
    assert np.isfinite([row["nll"], row["ece"], row["brier"]]).all()
