"""The 1,797 scanned 8x8 digits that scikit-learn ships: no download."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kfkd_jax.data import splits

_NUM_TEST = 500


class Digits(tfds.core.GeneratorBasedBuilder):
  """Real 8x8 grey scans of handwritten digits, 1,297 train and 500 test.

  The set has no split of its own: ours is stratified and fixed.
  """

  name = "digits"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1)),
          "label": tfds.features.ClassLabel(names=list("0123456789")),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://archive.ics.uci.edu/dataset/80",
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager  # the scans come with scikit-learn
    from sklearn import datasets  # slow to import, and needed only once

    scans = datasets.load_digits()
    images = np.round(scans.images * (255 / 16)).astype(np.uint8)
    order = splits.stratified_order(
      scans.target, np.arange(len(images)), seed=0
    )
    return {
      "train": self._generate_examples(images, scans.target, order[_NUM_TEST:]),
      "test": self._generate_examples(images, scans.target, order[:_NUM_TEST]),
    }

  def _generate_examples(
    self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for row in np.sort(rows).tolist():
      image = Image.fromarray(images[row])
      yield row, {"image": image, "label": int(labels[row])}
