"""Which examples train, select and test; label noise and its ledger."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from etils import epath

from kfkd_jax import files, label_noise

NOISE_KINDS = ("none", "symmetric", "pair", "asymmetric", "instance", "field")
NUM_HALVINGS = 3
_CARVE_STREAM = 2  # apart from the streams of the other splits


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseLedger:
  """What was done to the labels, one row an example.

  Attributes:
    index: int64[N] position of the example in its TFDS split.
    clean: int32[N] labels of the data set.
    given: int32[N] labels after the noise, which training sees.
    split: str[N] the part it went to: "train", "select" or "test".
  """

  index: np.ndarray
  clean: np.ndarray
  given: np.ndarray
  split: np.ndarray

  def realised_rate(self, split: str | None = None) -> float:
    """Share of labels that changed, in one part or in all; 0 if empty."""
    changed = self.clean != self.given
    if split is not None:
      changed = changed[self.split == split]
    return float(changed.mean()) if len(changed) else 0.0


def stratified_order(
  labels: np.ndarray, ids: np.ndarray, *, seed: int, stream: int = 0
) -> np.ndarray:
  """A random order in which every stretch has the classes in proportion.

  The order follows the ids: the same examples in another order give the same
  examples at each place.

  Args:
    labels: int[N].
    ids: int[N], distinct and not negative.
    seed: not negative.
    stream: another stream gives an independent order.

  Returns:
    int64[N] indices into `labels`. A stretch of n examples holds n times the
    share of each class, rounded up or down.
  """
  labels, ids = np.asarray(labels), np.asarray(ids)
  if labels.ndim != 1 or labels.shape != ids.shape:
    raise ValueError(
      "labels and ids must both be [N], got shapes"
      f" {labels.shape} and {ids.shape}"
    )
  # First by id, so that shuffling starts from the same order however it was
  # read.
  by_id = np.argsort(ids, kind="stable")
  # Raw Philox words: NumPy promises this stream for good, unlike shuffles.
  words = np.random.Philox(np.random.SeedSequence((seed, stream)))
  shuffled = by_id[np.argsort(words.random_raw(len(ids)), kind="stable")]
  shuffled_labels = labels[shuffled]
  classes, first = np.unique(shuffled_labels, return_index=True)
  # Different first places, so that many rare classes do not come all at once.
  offsets = (np.argsort(np.argsort(first)) + 0.5) / max(len(classes), 1)
  place = np.empty(len(ids))
  for label, offset in zip(classes, offsets):
    members = shuffled_labels == label
    count = members.sum()
    # A class of n puts its members at even distances: any stretch has its
    # share.
    place[members] = (np.arange(count) + offset) / count
  return shuffled[np.argsort(place, kind="stable")]


def split_train(
  labels: np.ndarray,
  ids: np.ndarray,
  *,
  num_select: int,
  num_train: int | None = None,
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Carves a selection part out of the training data, stratified and seeded.

  Args:
    labels: int[N], clean.
    ids: int[N], distinct.
    num_select: examples for selection; may be 0.
    num_train: examples to train on; None takes all that are left.
    seed: not negative.

  Returns:
    (train, select): sorted, disjoint int64 indices of exactly these sizes.
  """
  num_left = len(labels) - num_select
  if num_train is None:
    num_train = num_left
  if num_select < 0 or not 0 < num_train <= num_left:
    raise ValueError(
      f"num_select={num_select} and num_train={num_train} do not fit into"
      f" {len(labels)} training examples (num_train must be at least 1)"
    )
  # The selection part comes first: with another `num_train` it stays the same.
  order = stratified_order(labels, ids, seed=seed)
  train = order[num_select : num_select + num_train]
  return np.sort(train), np.sort(order[:num_select])


def carve_test(
  labels: np.ndarray, ids: np.ndarray, test_share: float, *, where: str
) -> tuple[np.ndarray, np.ndarray]:
  """Sets a stratified share aside for testing, always the same.

  Args:
    labels: int[N].
    ids: int[N], distinct.
    test_share: of the examples.
    where: they lie, for errors.

  Returns:
    (train, test): sorted, disjoint int64 indices.
  """
  num_test = round(test_share * len(labels))
  if not 0 < num_test < len(labels):
    raise ValueError(
      f"data.test_share={test_share} of the {len(labels)} images in {where}"
      " leaves nothing to test or nothing to train on"
    )
  order = stratified_order(labels, ids, seed=0, stream=_CARVE_STREAM)
  # Back in their old order, which reads faster from a disk.
  return np.sort(order[num_test:]), np.sort(order[:num_test])


def halve_test(
  labels: np.ndarray, ids: np.ndarray, *, fold: int
) -> tuple[np.ndarray, np.ndarray]:
  """Half of the test set to select on, half to report on (the paper's way).

  Args:
    labels: int[N].
    ids: int[N], distinct.
    fold: 0, 1 or 2: three independent halvings.

  Returns:
    (select, test): sorted, disjoint int64 indices; `test` has the odd one.
  """
  if fold not in range(NUM_HALVINGS):
    raise ValueError(f"fold must be 0, 1 or 2 (three halvings), got {fold}")
  # A stream of its own: no halving repeats the order of a training split.
  order = stratified_order(labels, ids, seed=fold, stream=1)
  half = len(order) // 2
  return np.sort(order[:half]), np.sort(order[half:])


def apply_noise(
  key: jax.Array,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  kind: str,
  rate: float,
  num_classes: int,
  name: str,
  field_labels: np.ndarray | None = None,
  projections: jax.Array | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Corrupts labels in one of the ways of method section 13.

  Args:
    key: PRNG key.
    images: uint8[N, H, W, Ch], read by kind "instance" only.
    labels: int[N], clean.
    kind: one of `NOISE_KINDS`. "asymmetric" swaps look-alike classes of
      CIFAR-10, moves to the next class of the superclass in CIFAR-100 and is
      "pair" for any other data set.
    rate: chance of a change, in [0, 1]; not read by "none" and "field". From
      0.5 on, "pair" makes a wrong class the most frequent label.
    num_classes: K.
    name: data set name, which chooses the asymmetric map.
    field_labels: int[N], the labels that kind "field" gives.
    projections: as of `label_noise.instance_dependent`.

  Returns:
    (given int32[N], transition float[K, K]); the transition matrix is None for
    the kinds that have no single one: "none", "instance", "field".
  """
  labels = np.asarray(labels, np.int32)
  _check_noise(labels, kind, rate, field_labels)
  if kind == "none":
    return labels.copy(), None
  if kind == "field":
    return np.array(field_labels, np.int32), None
  if kind == "instance":
    inputs = images.reshape(len(images), -1).astype(np.float32) / 255
    given = label_noise.instance_dependent(
      key, inputs, labels, num_classes, rate, projections=projections
    )
    return np.asarray(given, np.int32), None
  transition = _transition(kind, rate, num_classes, name)
  given = label_noise.corrupt_labels(key, labels, transition)
  return np.asarray(given, np.int32), np.asarray(transition)


def write_ledger(path: epath.PathLike, ledger: NoiseLedger) -> None:
  """Writes `noise.npz`, whole or not at all, with the rate that resulted."""
  rate = np.array(ledger.realised_rate())
  files.write_npz(epath.Path(path), **vars(ledger), realised_rate=rate)


def read_ledger(path: epath.PathLike) -> NoiseLedger:
  """Reads what `write_ledger` wrote."""
  arrays = files.read_npz(epath.Path(path))
  fields = [field.name for field in dataclasses.fields(NoiseLedger)]
  missing = [field for field in fields if field not in arrays]
  if missing:
    raise ValueError(f"{path} lacks {', '.join(missing)}: not a noise ledger")
  return NoiseLedger(**{field: arrays[field] for field in fields})


def _check_noise(labels, kind, rate, field_labels) -> None:
  if kind not in NOISE_KINDS:
    raise ValueError(f"kind must be one of {NOISE_KINDS}, got {kind!r}")
  if kind == "field":
    shape = None if field_labels is None else np.shape(field_labels)
    if shape != labels.shape:
      raise ValueError(
        f'kind="field" needs field_labels of shape {labels.shape}, got {shape}'
      )
  elif kind != "none" and not 0 <= rate <= 1:
    raise ValueError(f"rate must be in [0, 1], got {rate}")


def _transition(kind: str, rate: float, num_classes: int, name: str):
  """The [K, K] matrix of a kind of noise that has one."""
  if kind == "symmetric":
    return label_noise.symmetric(num_classes, rate)
  mappings = {
    "cifar10": label_noise.CIFAR10_PAIRS,
    "cifar100": label_noise.CIFAR100_NEXT_IN_SUPERCLASS,
  }
  mapping = mappings.get(name.removesuffix("_n"))
  if kind == "pair" or mapping is None:
    return label_noise.pair(num_classes, rate)
  return label_noise.asymmetric(mapping, rate)
