import numpy as np
import pytest
from etils import epath

from kfkd_jax import files
from kfkd_jax.predictions import PredictionStore, Subset, read_foreign


def make_probs(shape, seed=0):
  probs = np.random.default_rng(seed).random(shape).astype(np.float32)
  return probs / probs.sum(-1, keepdims=True)


@pytest.fixture
def store(tmp_path):
  store = PredictionStore.create(
    epath.Path(tmp_path) / "test", [0, 1, 2, 1], [4, 5, 6, 9], num_classes=3
  )
  for epoch in (10, 2, 7):
    store.write(epoch, make_probs((4, 3), epoch))
  return store


def test_is_an_array_in_order_of_epochs(store):
  assert store.shape == (3, 4, 3) and store.ndim == 3 and len(store) == 3
  assert store.epochs == [2, 7, 10]
  np.testing.assert_array_equal(store[1], make_probs((4, 3), 7))
  np.testing.assert_array_equal(PredictionStore(store.path).ids, [4, 5, 6, 9])


def test_subset_reads_rows(store):
  part = Subset(store, [3, 0])
  assert part.shape == (3, 2, 3) and len(part) == 3
  np.testing.assert_array_equal(part[0], make_probs((4, 3), 2)[[3, 0]])


def test_truncate_forgets_later_epochs(store):
  store.truncate(7)
  assert store.epochs == [2, 7]


def test_half_precision_store(tmp_path):
  store = PredictionStore.create(
    epath.Path(tmp_path) / "s", [0], [0], num_classes=2, dtype="float16"
  )
  store.write(1, make_probs((1, 2)))
  assert store.dtype == store[0].dtype == np.float16


def test_refuses_other_examples_and_shapes(store):
  with pytest.raises(ValueError, match="made for other examples"):
    PredictionStore.create(store.path, [0], [1], num_classes=3)
  with pytest.raises(ValueError, match=r"shape \(4, 2\), not \(4, 3\)"):
    store.write(11, np.zeros((4, 2)))


def test_flipped_byte_is_an_error_that_names_the_file(store):
  victim = store.path / "00007.npz"
  content = bytearray(victim.read_bytes())
  content[-150] ^= 1  # inside the array's bytes
  victim.write_bytes(bytes(content))
  with pytest.raises(ValueError, match=r"00007\.npz is damaged"):
    store.read(7)


GOOD = {"probs": make_probs((2, 4, 3)), "labels": np.array([0, 1, 2, 1])}


def foreign(tmp_path, **changes):
  path = epath.Path(tmp_path) / "mine.npz"
  arrays = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
  files.write_npz(path, **arrays)
  return read_foreign(path)


def test_foreign_predictions_default_epochs(tmp_path):
  found = foreign(tmp_path)
  np.testing.assert_array_equal(found.epochs, [1, 2])
  assert found.labels.dtype == np.int32
  found = foreign(tmp_path, epochs=np.array([5, 9]))
  np.testing.assert_array_equal(found.epochs, [5, 9])


NAN = make_probs((2, 4, 3))
NAN[1, 2, 0] = np.nan


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"labels": None}, "no array 'labels'"),
    ({"probs": GOOD["probs"][0]}, r"must be \[checkpoints, examples, class"),
    ({"labels": np.eye(3, dtype=int)}, r"shape \(4,\) to go"),
    ({"labels": np.zeros(4)}, "must be integers, got float64"),
    ({"labels": np.array([0, 1, 2, 3])}, r"must lie in 0\.\.2, got 0\.\.3"),
    ({"probs": GOOD["probs"] * 7 - 1}, "are these logits"),
    ({"probs": GOOD["probs"] * 0.5}, "sum to 1"),
    ({"probs": NAN}, r"probs\[1\] holds NaN"),
    ({"probs": np.ones((2, 4, 3), int)}, "must be floating"),
    ({"epochs": np.array([2, 1])}, "2 ascending numbers"),
    ({"epochs": np.array([1])}, "2 ascending numbers"),
  ],
)
def test_foreign_mistakes_meet_their_own_message(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    foreign(tmp_path, **changes)


def test_half_precision_rows_need_not_sum_exactly(tmp_path):
  found = foreign(tmp_path, probs=GOOD["probs"].astype(np.float16))
  assert found.probs.dtype == np.float16


def test_text_file_renamed(tmp_path):
  path = epath.Path(tmp_path) / "mine.npz"
  path.write_text("epoch,accuracy\n1,0.5\n")
  with pytest.raises(ValueError, match=r"mine\.npz is damaged or not an \.npz"):
    read_foreign(path)


def test_pickles_are_refused(tmp_path):
  path = epath.Path(tmp_path) / "mine.npz"
  np.savez(path, probs=np.array([{}], object), labels=np.zeros(1, int))
  with pytest.raises(ValueError, match="allow_pickle"):
    read_foreign(path)
