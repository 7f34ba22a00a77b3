"""Human labels beside CIFAR: CIFAR-10N and CIFAR-100N (Wei et al. 2022).

Their authors ship pickled files (`CIFAR-10_human.pt`), and unpickling runs
whatever code a file holds. So they are converted once, where you trust them:

    labels = torch.load("CIFAR-10_human.pt", weights_only=False)
    np.savez("cifar10_n.npz", **labels)

The result, `cifar10_n.npz` or `cifar100_n.npz`, goes to `manual_dir`. A `.npy`
holding a structured array and a `.csv` with a header line serve as well.
Columns: `clean_label` (to check that the rows are ours) and, in CIFAR-10N,
`aggre_label`, `worse_label`, `random_label1` to `random_label3`, in CIFAR-100N
`noisy_label`. Rows may be in the order of the CIFAR archive or in that of TFDS.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from etils import epath

from kfkd_jax import files

BASES = {"cifar10_n": "cifar10", "cifar100_n": "cifar100"}
_CLEAN = "clean_label"


def read_columns(folder: epath.Path, name: str) -> dict[str, np.ndarray]:
  """The label columns in `<folder>/<name>.npz`, `.npy` or `.csv`.

  Args:
    folder: where the file lies.
    name: `cifar10_n` or `cifar100_n`.

  Returns:
    Column name -> int32[N], `clean_label` among them.
  """
  readers = {
    ".npz": _read_npz,
    ".npy": lambda content: _by_name(
      np.load(io.BytesIO(content), allow_pickle=False)
    ),
    ".csv": lambda content: _by_name(
      np.genfromtxt(io.StringIO(content.decode()), delimiter=",", names=True)
    ),
  }
  paths = [folder / f"{name}{suffix}" for suffix in readers]
  found = [path for path in paths if path.exists()]
  if not found:
    raise ValueError(
      f"name={name!r} needs a file of human labels, one of"
      f" {', '.join(p.name for p in paths)} in {folder}; the documentation of"
      " kfkd_jax.data.human_labels says how to make it"
    )
  path = found[0]
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error")  # NumPy's only complaint of an empty file
      columns = readers[path.suffix](files.read_bytes(path))
  except files.NotAFileError:
    raise
  except Exception as error:  # zipfile and NumPy raise a dozen kinds
    raise ValueError(
      f"{path} is damaged, cannot be read without unpickling or has no named"
      f" columns: {' '.join(str(error).split())}"
    ) from error
  numeric = {k: v for k, v in columns.items() if v.dtype.kind in "iuf"}
  if _CLEAN not in numeric:
    raise ValueError(f"{path} has no column {_CLEAN}, only {sorted(columns)}")
  if not numeric[_CLEAN].size:
    raise ValueError(f"{path} has no rows")
  return {key: _to_labels(path, key, v) for key, v in numeric.items()}


def align(
  columns: dict[str, np.ndarray],
  clean_labels: np.ndarray,
  archive_place: np.ndarray,
) -> dict[str, np.ndarray]:
  """Human label columns in the order of our examples.

  Args:
    columns: from `read_columns`.
    clean_labels: int[N] of our training examples.
    archive_place: int[N] the place of each of them in the CIFAR archive.

  Returns:
    Every column but `clean_label`, int32[N].
  """
  stored = columns[_CLEAN]
  if stored.shape != clean_labels.shape:
    raise ValueError(
      f"{_CLEAN} has {len(stored)} rows, the training split"
      f" {len(clean_labels)}: human labels need the whole split"
    )
  # The authors' file follows the archive, others follow TFDS: right is the
  # order in which every clean label agrees.
  for rows in (archive_place, np.arange(len(stored))):
    if np.array_equal(stored[rows], clean_labels):
      return {k: v[rows] for k, v in columns.items() if k != _CLEAN}
  agreeing = np.mean(stored[archive_place] == clean_labels)
  raise ValueError(
    f"{_CLEAN} differs from the labels of the data set (equal in"
    f" {agreeing:.1%} of the rows): the human labels belong to other images"
  )


def _read_npz(content: bytes) -> dict[str, np.ndarray]:
  found = np.load(io.BytesIO(content), allow_pickle=False)
  if isinstance(found, np.ndarray):
    raise ValueError("it is a single array (.npy) under another name")
  with found as archive:
    return {key: archive[key] for key in archive.files}


def _by_name(table: np.ndarray) -> dict[str, np.ndarray]:
  if table.dtype.names is None:
    raise ValueError(f"an array of type {table.dtype} has no named columns")
  return {name: np.atleast_1d(table[name]) for name in table.dtype.names}


def _to_labels(path: epath.Path, key: str, column: np.ndarray) -> np.ndarray:
  with np.errstate(invalid="ignore"):  # what is no number fails below
    labels = column.astype(np.int32)
  if column.ndim != 1 or not np.array_equal(labels, column):
    raise ValueError(f"{path}: column {key} holds no whole numbers, one a row")
  return labels
