"""Image sets that lie in folders, as their users or authors lay them out.

Each reader lists files and labels; nothing is decoded. All of them expect a
local or mounted folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from kfkd_jax.data import splits
from kfkd_jax.files import check_is_file

SUFFIXES = (".jpg", ".jpeg", ".png")
NOISY_FIELD = "noisy_label"  # Clothing1M's, where both labels are known
_ANIMALS = (  # number in the file name -> class, as its authors list them
  "cat",
  "lynx",
  "wolf",
  "coyote",
  "cheetah",
  "jaguar",
  "chimpanzee",
  "orangutan",
  "hamster",
  "guinea pig",
)
_SHOWN = 3  # names in a message


class Listing(NamedTuple):
  """The files of one split.

  Attributes:
    paths: str[N], relative to the root.
    labels: int32[N].
    ids: int64[N] places in the split.
    extra: int32[N] a further label, else None.
  """

  paths: np.ndarray
  labels: np.ndarray
  ids: np.ndarray
  extra: np.ndarray | None = None


class Folder(NamedTuple):
  """A set of image files.

  Attributes:
    train: its training files.
    test: its test files.
    class_names: K names.
  """

  train: Listing
  test: Listing
  class_names: tuple[str, ...]


def image_folder(root: str, *, test_share: float) -> Folder:
  """A folder of class folders: `train/CLASS/*.jpg` or `CLASS/*.jpg`.

  Classes are the sorted names of their folders. With `train/`, the test images
  lie in `test/` or `val/` beside it, under the same names. Without, a fixed
  stratified share of the images tests.

  Args:
    root: the folder.
    test_share: of the images, where there is no `train/`.
  """
  split = _subfolders(root, "train") if os.path.isdir(f"{root}/train") else []
  if not split:  # also where `train` is a class, full of images
    classes = _two_or_more(root)
    both = _by_class(root, classes, classes)
    rows = splits.carve_test(both.labels, both.ids, test_share, where=root)
    train, test = (
      Listing(both.paths[r], both.labels[r], both.ids[r]) for r in rows
    )
    return Folder(train, test, tuple(classes))
  others = [  # a test/ without labels, as from competitions, tests nothing
    name
    for name in ("test", "val")
    if os.path.isdir(f"{root}/{name}") and _subfolders(root, name)
  ]
  if not others:
    raise ValueError(
      f"{root} has train/ but no class folders in test/ or val/; move those of"
      " train/ up into it to have a share of them set aside for testing"
    )
  test_root = f"{root}/{others[0]}"
  classes = _two_or_more(f"{root}/train")
  found = _class_folders(test_root)
  unknown = sorted(set(found) - set(classes))
  if unknown:
    raise ValueError(
      f"{test_root} has classes that {root}/train lacks: {_some(unknown)}"
    )
  train = _by_class(f"{root}/train", classes, classes, prefix="train")
  test = _by_class(
    test_root, found, classes, prefix=others[0], may_be_empty=True
  )
  missing = np.setdiff1d(np.arange(len(classes)), test.labels)
  if len(missing):
    names = _some([classes[k] for k in missing])
    print(f"{test_root} has no images of {len(missing)} classes: {names}")
  return Folder(train, test, tuple(classes))


def tiny_imagenet(root: str) -> Folder:
  """`train/WNID/images/*.JPEG`; `val/` with its annotations tests."""
  _check_has(root, "train", "val/images", "val/val_annotations.txt")
  classes = sorted(_subfolders(root, "train"))
  class_of = {name: k for k, name in enumerate(classes)}
  files = [
    (f"train/{name}/images/{file}", class_of[name])
    for name in classes
    for file in _images(f"{root}/train/{name}/images")
  ]
  rows = _table(f"{root}/val/val_annotations.txt", num_columns=2)
  for _, name in rows:
    if name not in class_of:
      raise ValueError(f"{root}: class {name} of val/ is not in train/")
  test = [(f"val/images/{file}", class_of[name]) for file, name in rows]
  return Folder(_listing(files, root), _listing(test, root), tuple(classes))


def animal10n(root: str) -> Folder:
  """`training/LABEL_*.jpg` and `testing/LABEL_*.jpg`."""
  _check_has(root, "training", "testing")

  def read(split: str) -> Listing:
    files = []
    for file in _images(f"{root}/{split}"):
      label = file.partition("_")[0]
      if not label.isdecimal() or int(label) >= len(_ANIMALS):
        raise ValueError(
          f"{root}/{split}/{file} does not start with a class, 0_ to 9_"
        )
      files.append((f"{split}/{file}", int(label)))
    return _listing(files, f"{root}/{split}")

  return Folder(read("training"), read("testing"), _ANIMALS)


def clothing1m(root: str, *, label_field: str | None = None) -> Folder:
  """A million pictures labelled by their shops; clean labels test.

  Args:
    root: with the key lists, `*_label_kv.txt` and `images/`.
    label_field: None trains on the noisy training list with its noisy labels,
      whose true ones nobody knows. `noisy_label` trains on the images that
      have a clean label as well, and reads the noisy one into `extra`.
  """
  names = (
    "category_names_eng.txt",
    "noisy_label_kv.txt",
    "clean_label_kv.txt",
    "noisy_train_key_list.txt",
    "clean_train_key_list.txt",
    "clean_test_key_list.txt",
  )
  _check_has(root, *names)
  check_is_file(f"{root}/{names[0]}")
  with open(f"{root}/{names[0]}", encoding="utf-8") as file:
    classes = tuple(filter(None, (line.strip() for line in file)))
  noisy, clean = (
    _numbered(f"{root}/{name}", len(classes)) for name in names[1:3]
  )
  lists = [
    [key for (key,) in _table(f"{root}/{name}", num_columns=1)]
    for name in names[3:]
  ]

  def labelled(keys, labels, name):
    unknown = [key for key in keys if key not in labels]
    if unknown:
      raise ValueError(f"{root}/{name} has no label of {_some(unknown)}")
    return _listing([(key, labels[key]) for key in keys], root)

  test = labelled(lists[2], clean, names[2])
  if label_field is None:
    train = labelled(lists[0], noisy, names[1])
    return Folder(train, test, classes)
  # Both lists: images with two labels stand in either.
  both = [k for k in lists[0] + lists[1] if k in noisy and k in clean]
  train = labelled(both, clean, names[2])
  extra = np.array([noisy[key] for key in both], np.int32)
  return Folder(train._replace(extra=extra), test, classes)


NAMES = ("image_folder", "tiny_imagenet", "animal10n", "clothing1m")


def checked_root(name: str, root: str | None) -> str:
  """The folder of the set called `name`, which must exist."""
  if root is None:
    raise ValueError(f"name={name!r} needs data.root, the folder it lies in")
  root = os.path.expanduser(root)
  if not os.path.isdir(root):
    raise ValueError(f"data.root={root} is no folder")
  return root


def read(
  name: str,
  root: str,
  *,
  label_field: str | None,
  test_share: float,
  follow_links: bool = False,
) -> Folder:
  """The set called `name`, one of `NAMES`, in the folder `root`.

  Raises:
    ValueError: it is not laid out so, or what is in it lies elsewhere, by a
      link or a path that leads out, without `follow_links`.
  """
  if not follow_links:
    _check_links(root)
  fields = (NOISY_FIELD,) if name == "clothing1m" else ()
  if label_field is not None and label_field not in fields:
    raise ValueError(
      f"label_field={label_field!r} is no further label of {name}, which has"
      f" {', '.join(fields) or 'none'}"
    )
  if name == "image_folder":
    found = image_folder(root, test_share=test_share)
  elif name == "clothing1m":
    found = clothing1m(root, label_field=label_field)
  else:
    found = tiny_imagenet(root) if name == "tiny_imagenet" else animal10n(root)
  if not follow_links:
    _check_inside(root, [*found.train.paths, *found.test.paths])
  return found


def _check_links(root: str) -> None:
  """Refuses links that lead out, in a folder and the folders in it."""
  for folder in (root, *(f"{root}/{name}" for name in _subfolders(root))):
    with os.scandir(folder) as entries:
      links = [os.path.relpath(e, root) for e in entries if e.is_symlink()]
    _check_inside(root, links)


def _check_inside(root: str, paths: Iterable[str]) -> None:
  """Refuses files that lie elsewhere; a million are looked at in seconds."""
  top = os.path.realpath(root)
  folders: dict[str, str] = {}
  for path in map(str, paths):
    where, name = os.path.split(path)
    if where not in folders:
      folders[where] = os.path.realpath(os.path.join(root, where))
    real = os.path.join(folders[where], name)
    if os.path.islink(real):
      real = os.path.realpath(real)
    if os.path.commonpath([top, real]) != top:
      raise ValueError(
        f"{os.path.join(root, path)} lies outside data.root={root}, in {real};"
        " set data.follow_links=True if it belongs to the data"
      )


def _class_folders(root: str) -> list[str]:
  """The sorted names of a folder's class folders."""
  names = sorted(_subfolders(root))
  loose = [n for n in os.listdir(root) if n.lower().endswith(SUFFIXES)]
  if loose:
    raise ValueError(
      f"{root} holds images beside its class folders ({_some(loose)}); each"
      " image must lie in the folder of its class"
    )
  return names


def _two_or_more(root: str) -> list[str]:
  names = _class_folders(root)
  if len(names) < 2:
    raise ValueError(
      f"{root} must hold two class folders or more, each with images; it has"
      f" {names or 'none'}"
    )
  return names


def _by_class(
  root: str,
  folders: Iterable[str],
  classes: list[str],
  *,
  prefix: str = "",
  may_be_empty: bool = False,
) -> Listing:
  """The images of class folders, in the order of the classes."""
  class_of = {name: k for k, name in enumerate(classes)}
  files = []
  for name in folders:
    found = _images(f"{root}/{name}")
    if not found and not may_be_empty:
      raise ValueError(
        f"{root}/{name} holds no images ({', '.join(SUFFIXES)}); fill it or"
        " remove it"
      )
    files += [(os.path.join(prefix, name, f), class_of[name]) for f in found]
  return _listing(files, root)


def _listing(files: list[tuple[str, int]], where: str) -> Listing:
  if not files:
    raise ValueError(f"{where} holds no images ({', '.join(SUFFIXES)})")
  paths, labels = zip(*files, strict=True)
  return Listing(
    np.array(paths), np.array(labels, np.int32), np.arange(len(files))
  )


def _images(folder: str) -> list[str]:
  """The sorted names of the images in a folder; says what else is there."""
  images: list[str] = []
  others: list[str] = []
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.name.startswith("."):
        continue
      if entry.is_dir():
        raise ValueError(
          f"{entry.path} is a folder in a folder of images; move its images"
          " up, or it away"
        )
      known = entry.name.lower().endswith(SUFFIXES)
      (images if known else others).append(entry.name)
  if others:
    print(f"{folder}: ignored {len(others)} other files: {_some(others)}")
  # `scandir` gives them in any order, and places are what seeds refer to.
  return sorted(images)


def _subfolders(root: str, name: str = "") -> list[str]:
  with os.scandir(os.path.join(root, name)) as entries:
    return [e.name for e in entries if e.is_dir() and e.name[0] != "."]


def _numbered(path: str, num_classes: int) -> dict[str, int]:
  """The labels in a file of names and numbers."""
  found = {}
  for key, label in _table(path, num_columns=2):
    if not label.isdecimal() or int(label) >= num_classes:
      raise ValueError(f"{path}: {label} is none of {num_classes} classes")
    found[key] = int(label)
  return found


def _table(path: str, *, num_columns: int) -> list[list[str]]:
  """The first columns of a file of words, line by line."""
  check_is_file(path)
  try:
    with open(path, encoding="utf-8") as file:
      rows = [line.split()[:num_columns] for line in file if line.strip()]
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is no file of words: {error}") from error
  if any(len(row) < num_columns for row in rows):
    raise ValueError(f"{path} has lines of fewer than {num_columns} words")
  return rows


def _check_has(root: str, *names: str) -> None:
  missing = [n for n in names if not os.path.exists(os.path.join(root, n))]
  if missing:
    raise ValueError(f"data.root={root} lacks {', '.join(missing)}")


def _some(names: Iterable[str]) -> str:
  names = sorted(names)
  more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
  return ", ".join(names[:_SHOWN]) + more
