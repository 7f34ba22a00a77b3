"""Procedural 32x32 colour images at CIFAR scale, for benchmarks and tests.

An image is a disc of one texture on a ground of another. The class is the pair
of textures; position, size, phase, colours, contrast and noise are drawn anew
for every image. Phases and signs being random, all classes have the same mean
image, so a linear model of the pixels learns next to nothing, while a few
convolutions find the textures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_SIZE = 32
_CHUNK = 1000  # images drawn together, from one random stream
_NOISE = 20.0  # standard deviation, in grey levels


@dataclasses.dataclass(eq=False, kw_only=True)
class SyntheticConfig(tfds.core.BuilderConfig):
  """What to draw: every field changes the data, so all are in the name.

  Attributes:
    num_classes: number of classes, any number from 2 on.
    num_train: images in split `train`.
    num_test: images in split `test`.
    seed: of everything that is drawn.
  """

  name: str = dataclasses.field(init=False)
  num_classes: int = 10
  num_train: int = 50_000
  num_test: int = 10_000
  seed: int = 0

  def __post_init__(self) -> None:
    lowest = {"num_classes": 2, "num_train": 1, "num_test": 1, "seed": 0}
    for field, low in lowest.items():
      if getattr(self, field) < low:
        raise ValueError(
          f"{field} of a synthetic data set must be at least {low}, got"
          f" {getattr(self, field)}"
        )
    self.name = (
      f"classes{self.num_classes}_train{self.num_train}"
      f"_test{self.num_test}_seed{self.seed}"
    )


class Synthetic(tfds.core.GeneratorBasedBuilder):
  """Textured discs on textured grounds: 32x32x3, any number of classes."""

  name = "synthetic"
  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, config: SyntheticConfig | None = None, **kwargs):
    super().__init__(config=config or SyntheticConfig(), **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    num_classes = self.builder_config.num_classes
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(_SIZE, _SIZE, 3)),
          "label": tfds.features.ClassLabel(num_classes=num_classes),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager
    config = self.builder_config
    return {
      "train": self._generate_examples(0, config.num_train),
      "test": self._generate_examples(1, config.num_test),
    }

  def _generate_examples(
    self, stream: int, num_examples: int
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    config = self.builder_config
    for start in range(0, num_examples, _CHUNK):
      indices = np.arange(start, min(start + _CHUNK, num_examples))
      labels = indices % config.num_classes
      rng = np.random.default_rng((config.seed, stream, start))
      images = draw_images(rng, labels, num_classes=config.num_classes)
      for index, image, label in zip(indices.tolist(), images, labels.tolist()):
        yield index, {"image": Image.fromarray(image), "label": label}


def draw_images(
  rng: np.random.Generator, labels: np.ndarray, *, num_classes: int
) -> np.ndarray:
  """Images of the given classes.

  Args:
    rng: source of every random choice.
    labels: int[N].
    num_classes: K; class k has disc texture k // T and ground texture k % T,
      with T = ceil(sqrt(K)) textures.

  Returns:
    uint8[N, 32, 32, 3].
  """
  num_textures = math.ceil(math.sqrt(num_classes))
  disc = _grating(rng, labels // num_textures, num_textures)
  ground = _grating(rng, labels % num_textures, num_textures)
  inside = _discs(rng, len(labels))[..., None]
  noise = rng.standard_normal((*inside.shape[:3], 3), np.float32)
  pixels = np.where(inside, _coloured(rng, disc), _coloured(rng, ground))
  return np.clip(pixels + _NOISE * noise, 0, 255).astype(np.uint8)


def _grating(
  rng: np.random.Generator, textures: np.ndarray, num_textures: int
) -> np.ndarray:
  """A wave in [-1, 1] per image, of the texture's direction and frequency."""
  column = textures[:, None, None]
  jitter = rng.uniform(-1, 1, (2, *column.shape))
  angle = np.pi / num_textures * (column + 0.2 * jitter[0])
  # Neighbouring directions differ in frequency too: two cues for each texture.
  frequency = (4.0 + 2.5 * (column % 3) + 0.4 * jitter[1]) / _SIZE
  phase = rng.uniform(0, 1, column.shape)
  y, x = np.mgrid[:_SIZE, :_SIZE].astype(np.float32)
  along_x = (frequency * np.cos(angle)).astype(np.float32)
  along_y = (frequency * np.sin(angle)).astype(np.float32)
  turns = along_x * x + along_y * y + phase.astype(np.float32)
  return np.sin(np.float32(2 * np.pi) * turns)


def _discs(rng: np.random.Generator, num: int) -> np.ndarray:
  """bool[N, 32, 32]: a disc of random place and size in each image."""
  centre = rng.uniform(10, 22, (2, num, 1, 1)).astype(np.float32)
  radius = rng.uniform(7, 10, (num, 1, 1)).astype(np.float32)
  y, x = np.mgrid[:_SIZE, :_SIZE].astype(np.float32)
  return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2


def _coloured(rng: np.random.Generator, wave: np.ndarray) -> np.ndarray:
  """float32[N, 32, 32, 3]: the wave swings about a random colour."""
  shape = (len(wave), 1, 1, 3)
  base = rng.uniform(80, 175, shape).astype(np.float32)
  swing = rng.uniform(24, 60, shape) * rng.choice([-1.0, 1.0], shape)
  return base + wave[..., None] * swing.astype(np.float32)
