"""No number is ever taken on points that selected it, whatever the config."""

import types

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kfkd_jax import config as config_lib
from kfkd_jax.data import sources, splits
from kfkd_jax.run import tasks
from kfkd_jax.stages import compare


def configured(protocol, **selection):
  config = config_lib.default_config()
  config_lib.set_protocol(config, protocol)
  config.selection.update(selection)
  return config


def test_protocols_set_who_selects_and_leave_the_rest():
  config = configured("carved", num=7, halvings=2)
  config.fuse.transition = "known"
  config_lib.set_protocol(config, "practitioner")
  assert config.selection.to_dict() == {
    "source": "train",
    "num": 7,
    "labels": "noisy",
    "halvings": 2,
  }
  assert config.fuse.transition == "known"
  config_lib.validate(config)
  config_lib.set_protocol(config, "paper")
  assert config.selection.source == "test"
  assert (config.selection.labels, config.selection.halvings) == ("clean", 3)


def test_unknown_protocol():
  with pytest.raises(config_lib.ConfigError, match=r"'peper' .*paper, pract"):
    configured("peper")


def made(num_train, num_test, num_classes, seed):
  """A data set of that many examples with one pixel each."""
  rng = np.random.default_rng(seed)

  def part(count):
    return sources.Examples(
      images=np.zeros((count, 1, 1, 1), np.uint8),
      labels=rng.integers(0, num_classes, count).astype(np.int32),
      ids=rng.permutation(10 * count)[:count].astype(np.int64),
      extra=None,
    )

  return types.SimpleNamespace(
    train=part(num_train),
    test=part(num_test),
    class_names=[str(k) for k in range(num_classes)],
  )


@hypothesis.given(
  st.sampled_from(sorted(config_lib.PROTOCOLS)),
  st.integers(2, 60),
  st.integers(2, 60),
  st.integers(1, 20),
  st.integers(1, splits.NUM_HALVINGS),
  st.integers(2, 12),
  st.integers(0, 2**31 - 1),
)
def test_selecting_training_and_test_points_are_never_the_same(
  protocol, num_train, num_test, num_select, halvings, num_classes, seed
):
  num_select = min(num_select, num_train - 1)
  config = configured(protocol, num=num_select, halvings=halvings)
  config.seed = seed
  dataset = made(num_train, num_test, num_classes, seed)
  parts = tasks._parts(config, dataset)
  folds = tasks._folds(config, parts)
  from_test = config.selection.source == "test"
  assert len(folds) == (halvings if from_test else 1)
  assert set(parts["test"].ids) == set(dataset.test.ids)
  for fold in folds:
    assert fold.select_split == ("test" if from_test else "select")
    assert len(set(fold.test_rows)) == len(fold.test_rows) > 0
    if from_test:
      assert not set(fold.select_rows) & set(fold.test_rows)
      assert len(fold.select_rows) + len(fold.test_rows) == num_test
    else:
      select = set(parts["select"].ids[fold.select_rows])
      assert len(select) == num_select
      assert not select & set(parts["train"].ids)


@pytest.mark.parametrize("protocol", sorted(config_lib.PROTOCOLS))
def test_hits_are_kept_for_test_points_alone(protocol):
  """What a table reads holds nothing of the points that selected."""
  config = configured(protocol, num=5, halvings=2)
  parts = tasks._parts(config, made(20, 31, 3, seed=0))
  folds = tasks._folds(config, parts)
  labels = parts["test"].labels
  rng = np.random.default_rng(0)

  def entry(method):
    probs = rng.dirichlet(np.ones(3), len(labels))
    return compare.Entry(method, probs, "", 1, 1.0)

  by_fold = [[entry("final"), entry("kf")] for _ in folds]
  by_fold[0].append(entry("kf_kd"))
  task = types.SimpleNamespace(folds=folds, splits={"test": parts["test"]})
  hits = compare._hits(task, by_fold)
  assert hits.methods.tolist() == ["final", "kf", "kf_kd"]
  np.testing.assert_array_equal(hits.ids, parts["test"].ids)
  for f, fold in enumerate(folds):
    assert np.flatnonzero(hits.tested[f]).tolist() == sorted(fold.test_rows)
    if fold.select_split == "test":
      assert not hits.hits[f][:, fold.select_rows].any()
    assert hits.scored[f].tolist() == [True, True, f == 0]
    for e, entry_ in enumerate(by_fold[f]):
      for n in fold.test_rows:
        right = entry_.probs[n].argmax() == labels[n]
        assert hits.hits[f, e, n] == right
