"""MNIST and Fashion-MNIST from their four IDX files, unpacked with `gzip`."""

from __future__ import annotations

import gzip
import urllib.parse
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kfkd_jax import files

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
    images = _read_idx(images_path, num_axes=3)
    labels = _read_idx(labels_path, num_axes=1)
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
  URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
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


def _read_idx(path, *, num_axes: int) -> np.ndarray:
  """The uint8 array in a gzipped IDX file."""
  files.check_is_file(path)
  with path.open("rb") as f, gzip.open(f) as content:
    data = content.read()
  magic = int.from_bytes(data[:4], "big")
  expected = 0x0800 | num_axes  # 08: unsigned bytes
  if magic != expected:
    raise ValueError(
      f"{path} starts with {magic:#x}, an IDX file of bytes with {num_axes}"
      f" axes with {expected:#x}"
    )
  shape = np.frombuffer(data, ">i4", count=num_axes, offset=4)
  return np.frombuffer(data, np.uint8, offset=4 + shape.nbytes).reshape(shape)
