"""Splits, label noise and its ledger, epoch order, human labels."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfkd_jax import files, label_noise
from kfkd_jax.data import human_labels, order, splits

LABELS = np.arange(200) * 7919 % 997 % 5  # uneven classes
IDS = np.arange(200)


# Splits.


@pytest.mark.parametrize("num_classes,per_class", [(2, 1), (10, 50), (3, 7)])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_split_train_is_exact_disjoint_and_stratified(
  num_classes, per_class, share
):
  labels = np.repeat(np.arange(num_classes), per_class)
  num_select = int(share * len(labels))
  ids = np.arange(len(labels))
  train, select = splits.split_train(labels, ids, num_select=num_select, seed=1)
  assert len(select) == num_select
  assert len(train) == len(labels) - num_select
  both = np.concatenate([train, select])
  np.testing.assert_array_equal(np.sort(both), ids)
  counts = np.bincount(labels[select], minlength=num_classes)
  assert np.ptp(counts) <= 1


def test_split_train_keeps_the_shares_of_rare_classes():
  # 90 classes of one example each beside one of 910: no run of rare ones.
  labels = np.concatenate([np.zeros(910, int), np.arange(1, 91)])
  train, select = splits.split_train(
    labels, np.arange(1000), num_select=300, num_train=500, seed=0
  )
  assert abs((labels[select] == 0).sum() - 273) <= 1
  assert abs((labels[train] == 0).sum() - 455) <= 2


def test_split_train_takes_as_many_as_asked():
  train, select = splits.split_train(
    LABELS, IDS, num_select=30, num_train=50, seed=0
  )
  assert (len(train), len(select)) == (50, 30)
  assert not set(train) & set(select)
  for part in (train, select):
    assert np.all(np.diff(part) > 0)


def test_splits_depend_on_the_seed_and_on_nothing_else():
  first = splits.split_train(LABELS, IDS, num_select=40, seed=0)
  again = splits.split_train(LABELS, IDS, num_select=40, seed=0)
  other = splits.split_train(LABELS, IDS, num_select=40, seed=1)
  np.testing.assert_array_equal(first[1], again[1])
  assert np.any(first[1] != other[1])


def test_splits_follow_the_ids_not_the_place():
  shuffle = np.random.default_rng(1).permutation(200)
  _, select = splits.split_train(LABELS, IDS, num_select=40, seed=0)
  _, moved = splits.split_train(
    LABELS[shuffle], IDS[shuffle], num_select=40, seed=0
  )
  np.testing.assert_array_equal(np.sort(shuffle[moved]), select)


def test_split_never_changes():
  # Stored predictions point at these rows. Never change.
  _, select = splits.split_train(LABELS, IDS, num_select=8, seed=0)
  assert select.tolist() == [0, 31, 51, 112, 124, 136, 151, 167]


@pytest.mark.parametrize(
  "num_select,num_train",
  [(200, None), (201, None), (-1, None), (0, 0), (150, 51)],
)
def test_split_train_refuses_sizes_that_do_not_fit(num_select, num_train):
  with pytest.raises(
    ValueError,
    match=f"num_select={num_select} .* fit into 200 training examples",
  ):
    splits.split_train(
      LABELS, IDS, num_select=num_select, num_train=num_train, seed=0
    )


def test_splits_refuse_ids_of_another_length():
  with pytest.raises(
    ValueError, match=r"labels and ids .* \(200,\) and \(9,\)"
  ):
    splits.split_train(LABELS, IDS[:9], num_select=1, seed=0)


@pytest.mark.parametrize("num", [2, 199, 200])
def test_three_halvings_of_the_test_set(num):
  halves = [
    splits.halve_test(LABELS[:num], IDS[:num], fold=fold) for fold in range(3)
  ]
  for select, test in halves:
    assert len(select) == num // 2
    np.testing.assert_array_equal(
      np.sort(np.concatenate([select, test])), IDS[:num]
    )
    per_class = [np.bincount(LABELS[p], minlength=5) for p in (select, test)]
    assert np.abs(per_class[0] - per_class[1]).max() <= 2
  if num > 2:
    firsts = {tuple(select) for select, _ in halves}
    assert len(firsts) == 3


@pytest.mark.parametrize("fold", [-1, 3])
def test_there_are_three_halvings(fold):
  with pytest.raises(ValueError, match=f"fold must be 0, 1 or 2 .* got {fold}"):
    splits.halve_test(LABELS, IDS, fold=fold)


def test_halvings_are_independent_of_the_training_split():
  labels = np.zeros(1000, int)
  ids = np.arange(1000)
  select, _ = splits.halve_test(labels, ids, fold=0)
  _, carved = splits.split_train(labels, ids, num_select=500, seed=0)
  assert 200 < len(set(select) & set(carved)) < 300


# Noise.


def _noise(kind, *, rate=0.4, num_classes=10, name="digits", **kwargs):
  rng = np.random.default_rng(0)
  labels = np.arange(3000, dtype=np.int32) % num_classes
  images = rng.integers(0, 256, (3000, 4, 4, 1), np.uint8)
  result = splits.apply_noise(
    jax.random.key(0),
    images,
    labels,
    kind=kind,
    rate=rate,
    num_classes=num_classes,
    name=name,
    **kwargs,
  )
  return labels, *result


@pytest.mark.parametrize("kind", ["symmetric", "pair", "asymmetric"])
def test_noise_with_a_matrix_follows_it(kind):
  labels, given, transition = _noise(kind)
  assert given.dtype == np.int32
  np.testing.assert_allclose(transition.sum(1), 1, rtol=1e-6)
  assert transition.shape == (10, 10)
  assert np.all(transition[labels, given] > 0)
  # Four standard deviations of a binomial share.
  assert abs(np.mean(given != labels) - 0.4) < 4 * np.sqrt(0.24 / 3000)


@pytest.mark.parametrize(
  "name,num_classes,mapping",
  [
    ("cifar10", 10, label_noise.CIFAR10_PAIRS),
    ("cifar10_n", 10, label_noise.CIFAR10_PAIRS),
    ("cifar100", 100, label_noise.CIFAR100_NEXT_IN_SUPERCLASS),
    ("cifar100_n", 100, label_noise.CIFAR100_NEXT_IN_SUPERCLASS),
    ("mnist", 10, [*range(1, 10), 0]),
    ("synthetic/num_classes=4", 4, [1, 2, 3, 0]),
  ],
)
def test_asymmetric_noise_goes_where_the_data_set_says(
  name, num_classes, mapping
):
  labels, given, _ = _noise(
    "asymmetric", rate=1.0, name=name, num_classes=num_classes
  )
  np.testing.assert_array_equal(given, np.array(mapping)[labels])


def test_pair_noise_is_the_next_class_even_on_cifar10():
  labels, given, _ = _noise("pair", rate=1.0, name="cifar10")
  np.testing.assert_array_equal(given, (labels + 1) % 10)


def test_instance_noise_depends_on_the_images():
  labels, given, transition = _noise("instance")
  assert transition is None
  assert given.dtype == np.int32
  assert abs(np.mean(given != labels) - 0.4) < 0.06


def test_no_noise_and_labels_from_a_field():
  labels, given, transition = _noise("none")
  assert transition is None
  np.testing.assert_array_equal(given, labels)
  assert given is not labels
  field = (labels + 3) % 10
  _, given, transition = _noise("field", field_labels=field)
  assert transition is None
  np.testing.assert_array_equal(given, field)


def test_noise_depends_on_the_key():
  labels = np.zeros(100, np.int32)
  given = [
    splits.apply_noise(
      jax.random.key(seed),
      np.zeros((100, 1, 1, 1), np.uint8),
      labels,
      kind="symmetric",
      rate=0.5,
      num_classes=3,
      name="digits",
    )[0]
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(given[0], given[1])
  assert np.any(given[0] != given[2])


def test_noise_refuses_what_it_cannot_do():
  with pytest.raises(ValueError, match=r"kind must be one of .* got 'pairs'"):
    _noise("pairs")
  for rate in (-0.1, 1.1, float("nan")):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got"):
      _noise("pair", rate=rate)
  with pytest.raises(
    ValueError,
    match=r"field_labels of shape \(3000,\), got "
    "None",
  ):
    _noise("field")
  with pytest.raises(ValueError, match=r"\(3000,\), got \(7,\)"):
    _noise("field", field_labels=np.zeros(7, int))


def test_ledger_survives_the_disk_and_counts_changes(tmp_path):
  ledger = splits.NoiseLedger(
    index=np.arange(6),
    clean=np.array([0, 1, 2, 0, 1, 2], np.int32),
    given=np.array([0, 2, 2, 1, 1, 2], np.int32),
    split=np.array(["train"] * 4 + ["select"] * 2),
  )
  path = tmp_path / "deep" / "noise.npz"
  splits.write_ledger(path, ledger)
  read = splits.read_ledger(path)
  for field in ("index", "clean", "given", "split"):
    np.testing.assert_array_equal(getattr(read, field), getattr(ledger, field))
    assert getattr(read, field).dtype == getattr(ledger, field).dtype
  assert read.realised_rate() == pytest.approx(2 / 6)
  assert read.realised_rate("train") == 0.5
  assert read.realised_rate("select") == 0.0
  assert read.realised_rate("test") == 0.0  # none of them
  assert [p.name for p in path.parent.iterdir()] == ["noise.npz"]


def test_another_npz_is_no_ledger(tmp_path):
  files.write_npz(tmp_path / "noise.npz", index=np.arange(3))
  with pytest.raises(ValueError, match="lacks clean, given, split"):
    splits.read_ledger(tmp_path / "noise.npz")


# Order.


def test_epoch_order_is_a_permutation_of_seed_and_epoch_alone():
  orders = {}
  for seed in (0, 1):
    for epoch in (0, 1, 2):
      first = order.epoch_order(seed, epoch, 50)
      assert first.dtype == np.int32
      np.testing.assert_array_equal(np.sort(first), np.arange(50))
      np.testing.assert_array_equal(first, order.epoch_order(seed, epoch, 50))
      orders[seed, epoch] = tuple(first)
  assert len(set(orders.values())) == 6


def test_epoch_order_never_changes():
  # A run resumed under another NumPy must go on with the same order.
  assert order.epoch_order(3, 7, 8).tolist() == [2, 5, 3, 7, 1, 0, 4, 6]


def test_epoch_order_is_fair():
  firsts = [order.epoch_order(0, epoch, 4)[0] for epoch in range(400)]
  counts = np.bincount(firsts, minlength=4)
  assert np.abs(counts - 100).max() < 4 * np.sqrt(400 * 3 / 16)


@pytest.mark.parametrize(
  "num_examples,batch_size",
  [(1, 1), (1, 4), (3, 8), (8, 8), (9, 8), (900, 64), (1000, 1), (15, 8)],
)
def test_epoch_batches_count_every_example_once(num_examples, batch_size):
  _check_epoch_batches(num_examples, batch_size)


@given(st.integers(1, 70), st.integers(1, 40))
def test_epoch_batches_property(num_examples, batch_size):
  _check_epoch_batches(num_examples, batch_size)


def _check_epoch_batches(num_examples, batch_size):
  permutation = order.epoch_order(0, 0, num_examples)
  index, weight = order.epoch_batches(permutation, batch_size)
  num_steps = -(-num_examples // batch_size)
  assert index.shape == weight.shape == (num_steps, batch_size)
  assert index.dtype == np.int32
  assert weight.dtype == np.float32
  assert set(np.unique(weight)) <= {0.0, 1.0}
  real = index[weight == 1]
  np.testing.assert_array_equal(real, permutation)  # once each, in order
  assert np.ptp(weight.sum(1)) <= 1
  for row in index:
    assert len(set(row)) == min(num_examples, batch_size)
    counts = np.bincount(row, minlength=num_examples)
    assert np.ptp(counts[counts > 0]) <= 1


def test_epoch_batches_of_the_default():
  _, weight = order.epoch_batches(np.arange(900), 64)
  np.testing.assert_array_equal(weight.sum(1), np.full(15, 60))


@pytest.mark.parametrize(
  "num_examples,batch_size", [(1, 1), (1, 4), (8, 8), (9, 8), (500, 64)]
)
def test_padded_batches_cover_every_example_in_order(num_examples, batch_size):
  index, mask = order.padded_batches(num_examples, batch_size)
  assert (
    index.shape == mask.shape == (-(-num_examples // batch_size), batch_size)
  )
  assert index.dtype == np.int32
  np.testing.assert_array_equal(index[mask], np.arange(num_examples))
  assert np.all((index >= 0) & (index < num_examples))


@pytest.mark.parametrize("num_examples,batch_size", [(0, 4), (4, 0)])
def test_batches_refuse_nothing(num_examples, batch_size):
  message = f"got {num_examples} examples and batch_size={batch_size}"
  with pytest.raises(ValueError, match=message):
    order.padded_batches(num_examples, batch_size)
  with pytest.raises(ValueError, match=message):
    order.epoch_batches(np.arange(num_examples), batch_size)


# Human labels.

CLEAN = np.array([3, 1, 4, 1, 5], np.int32)
WORSE = np.array([3, 2, 4, 1, 6], np.int32)


def _write_human_labels(folder, suffix):
  path = folder / f"cifar10_n{suffix}"
  if suffix == ".npz":
    np.savez(path, clean_label=CLEAN, worse_label=WORSE)
  elif suffix == ".npy":
    kinds = [("clean_label", "i8"), ("worse_label", "i8")]
    np.save(path, np.array(list(zip(CLEAN, WORSE)), kinds))
  else:
    lines = [f"{c},{w}" for c, w in zip(CLEAN, WORSE)]
    path.write_text("\n".join(["clean_label,worse_label", *lines]))


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv"])
def test_human_labels_from_every_safe_format(tmp_path, suffix):
  _write_human_labels(tmp_path, suffix)
  columns = human_labels.read_columns(tmp_path, "cifar10_n")
  assert set(columns) == {"clean_label", "worse_label"}
  np.testing.assert_array_equal(columns["clean_label"], CLEAN)
  np.testing.assert_array_equal(columns["worse_label"], WORSE)
  assert columns["worse_label"].dtype == np.int32


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_human_labels_are_never_unpickled(tmp_path, suffix):
  path = tmp_path / f"cifar10_n{suffix}"
  pickled = np.array([{"clean_label": CLEAN}], object)
  if suffix == ".npz":
    np.savez(path, clean_label=pickled)
  else:
    np.save(path, pickled)
  with pytest.raises(ValueError, match=r"cifar10_n.* without unpickling"):
    human_labels.read_columns(tmp_path, "cifar10_n")


def test_human_labels_missing_or_odd(tmp_path):
  with pytest.raises(
    ValueError, match=r"one of cifar10_n\.npz, .* how to make"
  ):
    human_labels.read_columns(tmp_path, "cifar10_n")
  np.savez(tmp_path / "cifar10_n.npz", worse_label=WORSE)
  with pytest.raises(ValueError, match=r"no column clean_label, only \['worse"):
    human_labels.read_columns(tmp_path, "cifar10_n")
  np.savez(tmp_path / "cifar10_n.npz", clean_label=CLEAN / 2)
  with pytest.raises(ValueError, match="column clean_label holds no whole"):
    human_labels.read_columns(tmp_path, "cifar10_n")
  np.save(tmp_path / "cifar100_n.npy", WORSE)
  with pytest.raises(ValueError, match="no named columns"):
    human_labels.read_columns(tmp_path, "cifar100_n")


@pytest.mark.parametrize(
  ("suffix", "content"),
  [
    (".npz", b"junk"),
    (".npz", b""),
    (".npz", b"PK\x03\x04 cut short"),
    (".npz", b"\x93NUMPY\x01\x00 cut short"),
    (".npy", b"junk"),
    (".csv", b""),
    (".csv", b"clean_label,worse_label\n"),
    (".csv", b"clean_label\n1\n2,3\n"),
    (".csv", b"clean_label\nfive\n"),
    (".csv", b"\xff\xfe"),
  ],
)
def test_damaged_human_labels_name_their_file(tmp_path, suffix, content):
  path = tmp_path / f"cifar10_n{suffix}"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
    human_labels.read_columns(tmp_path, "cifar10_n")
  assert "\n" not in str(caught.value).strip()


def test_human_labels_align_by_archive_or_by_tfds_order():
  place = np.array([4, 0, 3, 1, 2])
  columns = {"clean_label": CLEAN, "worse_label": WORSE}
  aligned = human_labels.align(columns, CLEAN[place], place)
  assert set(aligned) == {"worse_label"}
  np.testing.assert_array_equal(aligned["worse_label"], WORSE[place])
  aligned = human_labels.align(columns, CLEAN, place)
  np.testing.assert_array_equal(aligned["worse_label"], WORSE)


def test_human_labels_of_other_images_are_refused():
  columns = {"clean_label": CLEAN, "worse_label": WORSE}
  place = np.arange(5)
  with pytest.raises(
    ValueError, match=r"differs .*equal in 80\.0% of the rows"
  ):
    human_labels.align(columns, np.array([3, 1, 4, 1, 0]), place)
  with pytest.raises(ValueError, match="has 5 rows, the training split 4"):
    human_labels.align(columns, CLEAN[:4], place[:4])
