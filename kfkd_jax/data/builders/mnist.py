"""MNIST and Fashion-MNIST from their four IDX files, unpacked with `gzip`."""

from __future__ import annotations

import gzip
import math
import urllib.parse
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums

from kfkd_jax import files

_FASHION_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_FILES = {
  "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
  "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class Mnist(tfds.core.GeneratorBasedBuilder):
  """MNIST: 60,000 + 10,000 handwritten digits."""

  name = "mnist"
  VERSION = tfds.core.Version("3.0.1")
  URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
  HOMEPAGE = "http://yann.lecun.com/exdb/mnist/"
  CLASS_NAMES: ClassVar[tuple[str, ...]] = tuple("0123456789")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(28, 28, 1)),
          "label": tfds.features.ClassLabel(names=list(self.CLASS_NAMES)),
        }
      ),
      supervised_keys=("image", "label"),
      homepage=self.HOMEPAGE,
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    urls = {
      name: urllib.parse.urljoin(self.URL, name)
      for pair in _FILES.values()
      for name in pair
    }
    paths = dl_manager.download(urls)
    return {
      split: self._generate_examples(paths[images], paths[labels])
      for split, (images, labels) in _FILES.items()
    }

  def _generate_examples(
    self, images_path, labels_path
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    images, labels = (
      parse_idx(unpacked(path), path, num_axes=axes)
      for path, axes in ((images_path, 3), (labels_path, 1))
    )
    if len(images) != len(labels):
      raise ValueError(
        f"{images_path} holds {len(images)} images, {labels_path}"
        f" {len(labels)} labels"
      )
    for index, (image, label) in enumerate(zip(images, labels)):
      yield index, {"image": Image.fromarray(image), "label": int(label)}


class FashionMnist(Mnist):
  """Fashion-MNIST: 60,000 + 10,000 pictures of clothes."""

  name = "fashion_mnist"
  # TFDS knows these files at an address that has no https.
  URL = _FASHION_URL
  url_infos: ClassVar[dict[str, checksums.UrlInfo]] = {
    f"{_FASHION_URL}{name}": checksums.UrlInfo(
      size=size, checksum=checksum, filename=name
    )
    for name, size, checksum in (
      (
        "train-images-idx3-ubyte.gz",
        26421880,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
      ),
      (
        "train-labels-idx1-ubyte.gz",
        29515,
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
      ),
      (
        "t10k-images-idx3-ubyte.gz",
        4422102,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
      ),
      (
        "t10k-labels-idx1-ubyte.gz",
        5148,
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
      ),
    )
  }
  HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
  CLASS_NAMES: ClassVar[tuple[str, ...]] = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
  )


def unpacked(path, most: int = -1) -> bytes:
  """The content of a file, packed by gzip or not, up to `most` bytes."""
  files.check_is_file(path)
  try:
    with path.open("rb") as f:
      packed = f.read(2) == b"\x1f\x8b"
      f.seek(0)
      if not packed:
        return f.read(most)
      with gzip.open(f) as content:
        return content.read(most)
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(f"{path} is damaged or cut short: {error}") from error


def parse_idx(data: bytes, path, *, num_axes: int) -> np.ndarray:
  """The uint8 array in the content of an IDX file."""
  magic = int.from_bytes(data[:4], "big")
  expected = 0x0800 | num_axes  # 08: unsigned bytes
  if magic != expected:
    raise ValueError(
      f"{path} starts with {magic:#x}, an IDX file of bytes with {num_axes}"
      f" axes with {expected:#x}"
    )
  start = 4 + 4 * num_axes
  shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
  if math.prod(shape) != len(data) - start:
    raise ValueError(f"{path} says {shape} and holds {len(data) - start} bytes")
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
