"""MNIST, Fashion-MNIST and the CIFARs from files that are there already.

The four IDX files, packed by gzip or not, and the `.tar.gz` of the CIFARs in
its Python or its binary version. Nothing is downloaded or prepared, and no file
is read whose size or SHA-256 sum is not that of the published one.
"""

from __future__ import annotations

import hashlib
import pickletools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from etils import epath

from kfkd_jax.data.builders import BUILDERS, cifar, mnist

# Where distributions put them.
FOLDERS = {"fashion_mnist": "/usr/share/datasets/fashion-mnist"}


class Published(NamedTuple):
  """A file as its authors publish it.

  Attributes:
    size: in bytes.
    sha256: of its content.
  """

  size: int
  sha256: str


# Of the content, for the same IDX file is packed in more ways than one.
IDX_FILES = {
  "mnist": {
    "train-images-idx3-ubyte": Published(
      47040016,
      "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": Published(
      60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte": Published(
      7840016,
      "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": Published(
      10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
  },
  "fashion_mnist": {
    "train-images-idx3-ubyte": Published(
      47040016,
      "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte": Published(
      60008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte": Published(
      7840016,
      "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte": Published(
      10008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
  },
}
ARCHIVES = {
  "cifar10": {
    "cifar-10-python.tar.gz": Published(
      170498071,
      "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "cifar-10-binary.tar.gz": Published(
      170052171,
      "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
  },
  "cifar100": {
    "cifar-100-python.tar.gz": Published(
      169001437,
      "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
    "cifar-100-binary.tar.gz": Published(
      168513733,
      "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
  },
}
NAMES = (*IDX_FILES, *ARCHIVES)
_CIFAR_KEYS = frozenset({
  "batch_label", "labels", "data", "filenames", "fine_labels", "coarse_labels",
  "label_names", "fine_label_names", "coarse_label_names",
  "num_cases_per_batch", "num_vis",
})  # fmt: skip


class Part(NamedTuple):
  """A split in the order of its files.

  Attributes:
    images: uint8[N, H, W, Ch].
    labels: int32[N] by feature key, `label` among them.
  """

  images: np.ndarray
  labels: dict[str, np.ndarray]


class Original(NamedTuple):
  """A data set as published.

  Attributes:
    train: its training `Part`.
    test: its test `Part`.
    class_names: K names.
  """

  train: Part
  test: Part
  class_names: tuple[str, ...]


def find(name: str, folder: epath.PathLike) -> list[epath.Path]:
  """The files in `folder` that make the set `name`; none if one is missing."""
  folder = epath.Path(folder).expanduser()
  if name in ARCHIVES:
    paths = [folder / file for file in ARCHIVES[name]]
    return [path for path in paths if path.is_file()][:1]
  found = []
  for file in IDX_FILES[name]:
    paths = [folder / f"{file}.gz", folder / file]
    found += [path for path in paths if path.is_file()][:1]
  return found if len(found) == len(IDX_FILES[name]) else []


def read(name: str, paths: list[epath.Path]) -> Original:
  """The set `name` from files that `find` found.

  Raises:
    ValueError: a file is not what was published.
  """
  if name in ARCHIVES:
    return _read_archive(BUILDERS[name], paths[0], ARCHIVES[name])
  contents = []
  for path, (file, published) in zip(
    paths, IDX_FILES[name].items(), strict=True
  ):
    content = mnist.unpacked(path, published.size + 1)
    _check(path, content, published)
    axes = 3 if "idx3" in file else 1
    contents.append(mnist.parse_idx(content, path, num_axes=axes))
  train, test = (
    Part(images[..., None], {"label": labels.astype(np.int32)})
    for images, labels in (contents[:2], contents[2:])
  )
  return Original(train, test, tuple(BUILDERS[name].CLASS_NAMES))


def missing(name: str, folder: epath.PathLike) -> str:
  """Says what `find` looks for."""
  if name in ARCHIVES:
    return f"data.root={folder} has none of {', '.join(ARCHIVES[name])}"
  return (
    f"data.root={folder} must hold the four files of {name}, each with or "
    f"without .gz: {', '.join(IDX_FILES[name])}"
  )


def _check(path: epath.Path, content: bytes, published: Published) -> None:
  found = Published(len(content), hashlib.sha256(content).hexdigest())
  if found != published:
    more = " or more" if found.size > published.size else ""
    raise ValueError(
      f"{path} is not the published file: {found.size} bytes{more}, SHA-256 "
      f"{found.sha256}, not {published.size} bytes, {published.sha256}"
    )


def _read_archive(
  builder: type[cifar.Cifar10],
  path: epath.Path,
  known: Mapping[str, Published],
) -> Original:
  published = known[path.name]
  with path.open("rb") as file:
    content = file.read(published.size + 1)
  _check(path, content, published)
  if "binary" in path.name:
    names = [
      *builder.LABELS.values(), *builder.TRAIN_FILES, *builder.TEST_FILES
    ]  # fmt: skip
    members = cifar.read_members(path, builder.FOLDER, names)
    train_part, test_part = (
      _binary_part(builder, path, {name: members[name] for name in files})
      for files in (builder.TRAIN_FILES, builder.TEST_FILES)
    )
    lines = members[builder.LABELS["label"]].decode()
    return Original(train_part, test_part, tuple(lines.split()))
  hundred = "coarse_label" in builder.LABELS
  batches = ("train",) if hundred else tuple(
    f"data_batch_{i}" for i in range(1, 6)
  )  # fmt: skip
  test, meta = ("test", "meta") if hundred else ("test_batch", "batches.meta")
  members = cifar.read_members(
    path,
    "cifar-100-python" if hundred else "cifar-10-batches-py",
    [*batches, test, meta],
  )
  keys = (
    {"label": "fine_labels", "coarse_label": "coarse_labels"}
    if hundred
    else {"label": "labels"}
  )
  train_part, test_part = (
    _pickled_part(path, {name: members[name] for name in files}, keys)
    for files in (batches, (test,))
  )
  words = _pickled(members[meta], f"{path}: {meta}")
  class_names = words["fine_label_names" if hundred else "label_names"]
  return Original(train_part, test_part, tuple(map(str, class_names)))


def _binary_part(builder, path, contents: Mapping[str, bytes]) -> Part:
  parsed = [
    cifar.parse(content, len(builder.LABELS), name=f"{path}: {name}")
    for name, content in contents.items()
  ]
  labels, pixels = (np.concatenate(c) for c in zip(*parsed, strict=True))
  columns = labels.T.astype(np.int32)
  return Part(pixels, dict(zip(builder.LABELS, columns, strict=True)))


def _pickled_part(
  path: epath.Path, contents: Mapping[str, bytes], keys: Mapping[str, str]
) -> Part:
  images, labels = [], []
  for name, content in contents.items():
    found = _pickled(content, f"{path}: {name}")
    # NumPy's own words stand beside the pixels: the longest string is theirs.
    pixels = max((v for v in found["data"] if isinstance(v, str)), key=len)
    planes = pixels.encode("latin-1")
    images.append(cifar.parse(planes, 0, name=f"{path}: {name}")[1])
    labels.append([found[key] for key in keys.values()])
  columns = np.concatenate(labels, axis=1).astype(np.int32)
  return Part(np.concatenate(images), dict(zip(keys, columns, strict=True)))


def _pickled(content: bytes, name: str) -> dict[str, list[int | str]]:
  """Numbers and words behind each known key of a pickle, which is not run."""
  found: dict[str, list[int | str]] = {}
  key = ""
  try:
    for opcode, value, _ in pickletools.genops(content):
      if isinstance(value, str) and "STRING" in opcode.name:
        if value in _CIFAR_KEYS:
          key, found[value] = value, []
        elif key:
          found[key].append(value)
      elif key and isinstance(value, int) and "BININT" in opcode.name:
        found[key].append(value)
  except ValueError as error:
    raise ValueError(f"{name} is damaged: {error}") from error
  return found
