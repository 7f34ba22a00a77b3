"""The prediction store: what every checkpoint said about every example.

A folder with `examples.npz` (labels, ids) and one `<epoch>.npz` a checkpoint.
A store looks like an array `[C, N, K]` that is read a checkpoint at a time,
which is all that `forgetting` and `fusion` ask for, so histories larger than
memory need nothing special. Files carry checksums and say which epoch, run and
examples they are of; both are verified on read.
"""

import bisect
import types
from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
from etils import epath

from kfkd_jax import answers, files, forgetting

_EXAMPLES = ("labels", "ids", "num_classes", "dtype")
_NOBODY: Mapping[str, str] = types.MappingProxyType({})


class PredictionStore:
  """Probabilities `[C, N, K]` on disk, in order of epochs.

  Attributes:
    labels: `[N]` the labels given for these examples.
    ids: `[N]` positions of the examples in their data set's split.
  """

  def __init__(self, path: epath.Path, *, owner: Mapping[str, str] = _NOBODY):
    """Opens an existing store; see `create`."""
    self.path = epath.Path(path)
    examples = files.read_npz(self.path / "examples.npz", _EXAMPLES)
    self.labels = examples["labels"]
    self.ids = examples["ids"]
    self._num_classes = int(examples["num_classes"])
    self._dtype = np.dtype(str(examples["dtype"]))
    content = self.labels.tobytes() + self.ids.tobytes()
    self._label = {**owner, "examples": files.digest(content)}
    # Listed once: reading or writing one of many epochs must not cost all.
    stems = [p.stem for p in self.path.iterdir() if p.suffix == ".npz"]
    epochs = {s: int(s) for s in stems if s.isascii() and s.isdigit()}
    self._epochs = sorted(e for s, e in epochs.items() if s == f"{e:05d}")

  @classmethod
  def create(
    cls,
    path: epath.Path,
    labels: np.ndarray,
    ids: np.ndarray,
    *,
    num_classes: int,
    dtype: str = "float32",
    owner: Mapping[str, str] = _NOBODY,
  ) -> Self:
    """Makes an empty store, or opens one made for the same examples.

    Args:
      path: its folder.
      labels: `[N]` given for these examples.
      ids: `[N]` of the examples.
      num_classes: K.
      dtype: of the probabilities on disk.
      owner: whose predictions they are, such as a run's name, by what is said
        of it. Files that say otherwise are refused; nothing is asked of what
        only one side names.
    """
    path = epath.Path(path)
    if not files.exists(path / "examples.npz"):
      files.write_npz(
        path / "examples.npz",
        labels=np.asarray(labels, np.int32),
        ids=np.asarray(ids, np.int64),
        num_classes=np.array(num_classes),
        dtype=np.array(dtype),
      )
    store = cls(path, owner=owner)
    same_ids = np.array_equal(store.ids, ids)
    if not (same_ids and np.array_equal(store.labels, labels)):
      raise ValueError(f"{path} was made for other examples; remove it")
    return store

  @property
  def epochs(self) -> list[int]:
    """Finished epochs of the stored checkpoints, ascending."""
    return list(self._epochs)

  @property
  def shape(self) -> tuple[int, int, int]:
    return len(self._epochs), len(self.labels), self._num_classes

  @property
  def dtype(self) -> np.dtype:
    return self._dtype

  @property
  def ndim(self) -> int:
    return 3

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, c: int) -> np.ndarray:
    """Probabilities `[N, K]` of checkpoint `c` (its place, not its epoch)."""
    return self.read(self._epochs[c])

  def read(self, epoch: int) -> np.ndarray:
    """Probabilities `[N, K]` after `epoch` finished epochs."""
    label = {**self._label, "epoch": epoch}
    return files.read_npz(self._file(epoch), ("probs",), label=label)["probs"]

  def write(self, epoch: int, probs: np.ndarray) -> None:
    """Stores probabilities `[N, K]` after `epoch` finished epochs."""
    expected = self.shape[1:]
    if probs.shape != expected:
      raise ValueError(
        f"probs for {self.path} have shape {probs.shape}, not {expected}"
      )
    label = {**self._label, "epoch": epoch}
    files.write_npz(self._file(epoch), label, probs=probs.astype(self._dtype))
    if epoch not in self._epochs:
      bisect.insort(self._epochs, epoch)

  def is_whole(self, epoch: int) -> bool:
    """Whether `epoch` can be read."""
    try:
      self.read(epoch)
    except (FileNotFoundError, ValueError):
      return False
    return True

  def truncate(self, epoch: int) -> None:
    """Forgets every checkpoint after `epoch`."""
    for later in [e for e in self.epochs if e > epoch]:
      self._file(later).unlink()
      self._epochs.remove(later)

  def _file(self, epoch: int) -> epath.Path:
    return self.path / f"{epoch:05d}.npz"


def disk_bytes(
  num_checkpoints: int, num_examples: int, num_classes: int, dtype: str
) -> int:
  """What a store takes on disk, in blocks of 4 KiB."""
  probs = num_examples * num_classes * np.dtype(dtype).itemsize
  examples = num_examples * (4 + 8)  # labels and ids
  return (
    num_checkpoints * _blocks(probs + _BYTES_PER_ARRAY + _BYTES_PER_LABEL)
    + _blocks(examples + 4 * _BYTES_PER_ARRAY)
    + _blocks(1)  # the folder
  )


_BYTES_PER_ARRAY = 264  # what the format adds to it
_BYTES_PER_LABEL = 230


def _blocks(size: int) -> int:
  return -(-size // 4096) * 4096


class Subset:
  """Some examples of a `[C, N, K]` stack, read a checkpoint at a time.

  Args:
    probs: the stack.
    rows: places of the examples.
    checkpoints: places of the checkpoints; None for all.
  """

  def __init__(
    self,
    probs: PredictionStore,
    rows: np.ndarray,
    checkpoints: np.ndarray | None = None,
  ):
    self._probs = probs
    self._rows = np.asarray(rows)
    every = np.arange(len(probs))
    self._checkpoints = every if checkpoints is None else checkpoints
    self.shape = (len(self._checkpoints), len(self._rows), probs.shape[2])
    self.dtype = probs.dtype
    self.ndim = 3

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, c: int) -> np.ndarray:
    return self._probs[int(self._checkpoints[c])][self._rows]


class Predictions(NamedTuple):
  """Somebody's saved predictions.

  Attributes:
    probs: `[C, N, K]`.
    labels: `[N]`.
    epochs: `[C]` finished epochs, 1..C when the file does not say.
    ids: `[N]` names of the examples, or their numbers.
  """

  probs: np.ndarray
  labels: np.ndarray
  epochs: np.ndarray
  ids: np.ndarray


_KINDS = ("probs", "correct", "answers")
_FOREIGN = (*_KINDS, "labels", "epochs", "ids")
_EXPECTED = (
  "expected one of probs[C,N,K], correct[C,N] and answers[C,N], with labels[N] "
  "but for correct, and optionally epochs[C]"
)
_FLOATS = ("float16", "float32", "float64")
_BLOCK = 2**20  # numbers checked at once


def read_foreign(path: epath.Path) -> Predictions:
  """Reads and checks `probs[C,N,K]`, `labels[N]`, `epochs[C]`, `ids[N]`."""
  found = read_any(path)
  if isinstance(found, answers.Answers):
    raise ValueError(
      f"{path} holds no probs[C,N,K]; answers and correct are for diagnose"
    )
  return found


def read_any(path: epath.Path) -> Predictions | answers.Answers:
  """Reads and checks somebody's predictions, of whatever kind.

  Args:
    path: an `.npz` with one of `probs[C,N,K]`, `correct[C,N]` (booleans) and
      `answers[C,N]` (integers or strings), `labels[N]` but for `correct`, and
      optionally `epochs[C]` and `ids[N]`; a folder that `PredictionStore` or a
      `Recorder` wrote; or a `.csv` or `.jsonl` with a row for every checkpoint
      and example: `epoch,example,correct` or `epoch,example,answer,label`.
  """
  path = epath.Path(path)
  if path.suffix in (".csv", ".jsonl"):
    return answers.read_rows(path)
  if path.is_dir():
    return _read_store(path)
  arrays = files.read_foreign_npz(path, _FOREIGN)
  kinds = [name for name in _KINDS if name in arrays]
  if not kinds:
    raise ValueError(f"{path} has no array 'probs'; {_EXPECTED}")
  if len(kinds) > 1:
    raise ValueError(f"{path} has {' and '.join(kinds)}; {_EXPECTED}")
  if kinds != ["correct"] and "labels" not in arrays:
    raise ValueError(f"{path} has no array 'labels'; {_EXPECTED}")
  try:
    if kinds != ["probs"]:
      return answers.of_arrays(arrays)
    probs = answers.native(arrays["probs"])
    check_probabilities(probs)
    labels = _checked_labels(arrays["labels"], probs.shape)
    epochs = arrays.get("epochs", np.arange(1, len(probs) + 1))
    return Predictions(
      probs,
      labels,
      answers.checked_epochs(epochs, len(probs)),
      answers.checked_ids(arrays, len(labels)),
    )
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def _read_store(path: epath.Path) -> Predictions:
  if not files.exists(path / "examples.npz"):
    raise ValueError(
      f"{path} is a folder without examples.npz, so that no Recorder wrote it; "
      "name a file"
    )
  store = PredictionStore(path)
  if not len(store):
    raise ValueError(f"{path} holds no epochs yet")
  probs = np.stack([store[c] for c in range(len(store))])
  check_probabilities(probs)
  labels = _checked_labels(store.labels, probs.shape)
  return Predictions(probs, labels, np.array(store.epochs), store.ids)


def of_probabilities(found: Predictions) -> answers.Answers:
  """The most probable classes as answers."""
  classes = np.asarray(forgetting.predicted_classes(found.probs))
  return answers.Answers(
    classes == found.labels, classes, found.labels, found.epochs, found.ids
  )


def _checked_labels(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  if labels.shape != shape[1:2]:
    raise ValueError(
      f"labels must be integers of shape {shape[1:2]} to go with probs "
      f"{shape}, got shape {labels.shape}"
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"labels must be integers, got {labels.dtype}")
  if labels.min() < 0 or labels.max() >= shape[2]:
    raise ValueError(
      f"labels must lie in 0..{shape[2] - 1}, got "
      f"{labels.min()}..{labels.max()}"
    )
  return labels.astype(np.int32)


def check_probabilities(probs: np.ndarray) -> None:
  """Refuses what is not `[C, N, K]` and sums to one over classes."""
  if probs.ndim != 3:
    raise ValueError(
      f"probs must be [checkpoints, examples, classes], got shape {probs.shape}"
    )
  if min(probs.shape) < 1 or probs.shape[2] < 2:
    raise ValueError(
      "probs must hold at least 1 checkpoint, 1 example and 2 classes, got "
      f"shape {probs.shape}"
    )
  if probs.dtype.name not in _FLOATS:
    raise ValueError(
      f"probs must be floating, one of {', '.join(_FLOATS)}; got {probs.dtype}"
    )
  tolerance = 2e-2 if probs.dtype == np.float16 else 1e-3
  rows = max(1, _BLOCK // probs.shape[2])
  for c in range(len(probs)):
    for start in range(0, probs.shape[1], rows):
      _check_rows(c, probs[c, start : start + rows], tolerance)


def _check_rows(c: int, rows: np.ndarray, tolerance: float) -> None:
  if not np.isfinite(rows).all():
    raise ValueError(f"probs[{c}] holds NaN or infinity")
  lowest, sums = rows.min(), rows.sum(-1, dtype=np.float64)
  one = np.abs(sums - 1).max() <= tolerance
  if one and lowest < 0:
    raise ValueError(f"probs[{c}] holds negative numbers, down to {lowest:.3g}")
  if not one:
    question = (
      "are these logits? Pass their softmax"
      if lowest < 0
      else ("divide each row by its sum if these are counts")
    )
    raise ValueError(
      f"rows of probs[{c}] must be non-negative and sum to 1, got a minimum of "
      f"{lowest:.3g} and sums {sums.min():.3g}..{sums.max():.3g}; {question}"
    )
