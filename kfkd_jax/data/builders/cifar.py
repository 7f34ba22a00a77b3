"""CIFAR-10 and CIFAR-100 from the binary archives, unpacked with `tarfile`."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kfkd_jax import files

_SHAPE = (32, 32, 3)
_NUM_PIXEL_BYTES = 32 * 32 * 3


class Cifar10(tfds.core.GeneratorBasedBuilder):
  """CIFAR-10: 50,000 + 10,000 colour images of 10 classes."""

  name = "cifar10"
  VERSION = tfds.core.Version("3.0.2")
  URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
  FOLDER = "cifar-10-batches-bin"
  TRAIN_FILES: ClassVar[tuple[str, ...]] = tuple(
    f"data_batch_{i}.bin" for i in range(1, 6)
  )
  TEST_FILES: ClassVar[tuple[str, ...]] = ("test_batch.bin",)
  # Label bytes in front of each image: feature key -> file of class names.
  LABELS: ClassVar[dict[str, str]] = {"label": "batches.meta.txt"}
  NUM_CLASSES: ClassVar[dict[str, int]] = {"label": 10}

  def _info(self) -> tfds.core.DatasetInfo:
    labels = {
      key: tfds.features.ClassLabel(num_classes=num)
      for key, num in self.NUM_CLASSES.items()
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          "id": tfds.features.Text(),
          "image": tfds.features.Image(shape=_SHAPE),
          **labels,
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    archive = dl_manager.download(self.URL)
    names = [*self.LABELS.values(), *self.TRAIN_FILES, *self.TEST_FILES]
    members = read_members(archive, self.FOLDER, names)
    for key, name in self.LABELS.items():
      self.info.features[key].names = members[name].decode().split()
    return {
      split: self._generate_examples(split, {n: members[n] for n in names})
      for split, names in (
        ("train", self.TRAIN_FILES),
        ("test", self.TEST_FILES),
      )
    }

  def _generate_examples(
    self, split: str, contents: dict[str, bytes]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    index = 0
    for name, content in contents.items():
      for labels, pixels in zip(*parse(content, len(self.LABELS), name=name)):
        yield (
          index,
          {
            "id": f"{split}_{index:05d}",
            "image": Image.fromarray(pixels),
            **{key: int(v) for key, v in zip(self.LABELS, labels)},
          },
        )
        index += 1


class Cifar100(Cifar10):
  """CIFAR-100: 50,000 + 10,000 colour images, 100 classes in 20 groups."""

  name = "cifar100"
  URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
  FOLDER = "cifar-100-binary"
  TRAIN_FILES = ("train.bin",)
  TEST_FILES = ("test.bin",)
  LABELS: ClassVar[dict[str, str]] = {
    "coarse_label": "coarse_label_names.txt",
    "label": "fine_label_names.txt",
  }
  NUM_CLASSES: ClassVar[dict[str, int]] = {"coarse_label": 20, "label": 100}


def read_members(archive, folder: str, names: list[str]) -> dict[str, bytes]:
  """The named files of a `.tar.gz`, in one pass over it."""
  found = {}
  files.check_is_file(archive)
  try:
    with archive.open("rb") as f, tarfile.open(fileobj=f, mode="r:gz") as tar:
      for member in tar:
        name = member.name.removeprefix("./").removeprefix(f"{folder}/")
        if name in names:
          if not member.isfile():
            raise ValueError(f"{archive}: {member.name} is no plain file")
          content = tar.extractfile(member)
          assert content is not None
          found[name] = content.read()
  except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(
      f"{archive} is damaged, cut short or no .tar.gz: {error}"
    ) from error
  missing = sorted(set(names) - set(found))
  if missing:
    raise ValueError(f"{archive} holds no {folder}/{{{','.join(missing)}}}")
  return found


def parse(
  content: bytes, num_labels: int, *, name: str
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of label bytes and planar RGB -> labels[N,L], pixels[N,32,32,3]."""
  row = num_labels + _NUM_PIXEL_BYTES
  if len(content) % row:
    raise ValueError(
      f"{name} has {len(content)} bytes, not a multiple of {row}"
    )
  rows = np.frombuffer(content, np.uint8).reshape(-1, row)
  planes = rows[:, num_labels:].reshape(-1, 3, 32, 32)
  pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
  return rows[:, :num_labels], pixels
