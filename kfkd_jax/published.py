"""Published numbers, to set beside ours.

Tables 1 to 3 of Stern, Yaacoby and Weinshall, "On Local Overfitting and
Forgetting in Deep Neural Networks", AAAI 2025: test accuracy in %, mean and
standard error over three halvings of the test set. `configs/paper/` has a
configuration for every column.

Fashion-MNIST under instance-dependent noise, of Yao et al., "Instance-dependent
Label-noise Learning under a Structural Causal Model", NeurIPS 2021: ResNet-18,
five repeats, mean test accuracy of the last 10 epochs. Their noise is ours but
for the scale of the pixels: 0..255 there, so that an image of a class is
always mistaken for the class of its largest score, and 0..1 here, where that
is so for most. What they do not say of the recipe is ours:
`configs/fashion_mnist.py:network=resnet18` with their column's name as `paper`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Number(NamedTuple):
  """A mean and its standard error, in %; None where it is not published."""

  mean: float
  error: float | None = None


class Column(NamedTuple):
  """One setting of the paper.

  Attributes:
    title: as the paper's tables have it.
    numbers: by method. Names ending in `_one_step` are the paper's `(i)`, the
      others its `(inf)`: as many checkpoints as Knowledge Fusion takes to its
      end.
    source: the paper, as a sentence names it.
  """

  title: str
  numbers: Mapping[str, Number]
  source: str = "the paper on Knowledge Fusion (AAAI 2025)"


_TABLE_1 = """
final                 78.07±.28 64.95±.24 75.74±.14 82.92±.11 79.16±.10 82.51±.15
horizontal_one_step   78.15±.17 64.89±.18 76.46±.14 83.13±.10 79.11±.10 82.77±.10
fixed_jumps_one_step  78.04±.23 66.54±.35 75.50±.09 82.37±.10 78.67±.08 83.38±.10
kf_one_step           78.33±.08 66.98±.37 75.88±.14 83.18±.16 79.93±.11 83.34±.04
horizontal            78.23±.17 65.11±.30 76.42±.10 83.02±.06 79.53±.13 82.93±.14
fixed_jumps           79.17±.08 68.24±.38 75.72±.18 83.86±.06 79.11±.13 83.78±.15
kf                    79.13±.14 68.50±.36 76.52±.16 83.96±.09 80.34±.08 83.81±.14
"""  # noqa: E501
_TABLE_2 = """
final        85.9±.3 67.1±.5 49.4±.3 65.4±.3  56.9±.1 56.2±.2 49.8±.3
horizontal   86.3±.3 73.4±.1 58.5±.1 71.1±.38 65.2±.1 59.3±.3 51.7±.2
fixed_jumps  87.1±.4 73.9±.1 59.9±.6 72.8±.1  66.5±.1 60.0±.8 54.16±.3
kf           87.8±.4 74.2±.1 62.1±.5 72.8±.1  67.0±.1 62.8±.2 57.0±.5
"""
# Table 3 repeats KF, and has 79.3±.2 for clean CIFAR-100.
_TABLE_3 = """
fge       78.9±.4 86.5±.6 67.1±.2 48.1±.3 66.5±.1 52.1±.1
swa       78.8±.1 88.1±.2 66.6±.1 46.9±.2 65.6±.4 50.0±.1
snapshot  78.4±.1 86.8±.3 72.1±.4 52.8±.6 70.8±.5 63.8±.2
"""
_NAMES_1 = (
  "cifar100", "tiny_imagenet", "imagenet_resnet50", "imagenet_convnext_large",
  "imagenet_vit_base", "imagenet_maxvit_tiny",
)  # fmt: skip
_NAMES_2 = (
  "animal10n", "cifar100_asym_20", "cifar100_asym_40", "cifar100_sym_20",
  "cifar100_sym_40", "tiny_imagenet_20", "tiny_imagenet_40",
)  # fmt: skip
_NAMES_3 = (
  "cifar100", "animal10n", "cifar100_asym_20", "cifar100_asym_40",
  "cifar100_sym_20", "cifar100_sym_40",
)  # fmt: skip
_TITLES = {
  "cifar100": "CIFAR-100, ResNet-18",
  "tiny_imagenet": "TinyImageNet, ResNet-18",
  "imagenet_resnet50": "ImageNet, ResNet-50",
  "imagenet_convnext_large": "ImageNet, ConvNeXt-L",
  "imagenet_vit_base": "ImageNet, ViT-B/16",
  "imagenet_maxvit_tiny": "ImageNet, MaxViT-T",
  "animal10n": "Animal-10N (8 % noise), ResNet-18",
  "cifar100_asym_20": "CIFAR-100, 20 % asymmetric noise, ResNet-18",
  "cifar100_asym_40": "CIFAR-100, 40 % asymmetric noise, ResNet-18",
  "cifar100_sym_20": "CIFAR-100, 20 % symmetric noise, ResNet-18",
  "cifar100_sym_40": "CIFAR-100, 40 % symmetric noise, ResNet-18",
  "tiny_imagenet_20": "TinyImageNet, 20 % noise, ResNet-18",
  "tiny_imagenet_40": "TinyImageNet, 40 % noise, ResNet-18",
}
_YAO = """
final        88.5 88.4 84.2 69.7 52.3
mixup        88.7 88.0 85.5 79.6 66.0
forward      90.1 88.7 86.3 73.4 58.2
co_teaching  91.2 90.3 89.1 86.8 63.2
t_revision   91.6 90.1 89.5 84.0 69.0
causal_nl    90.8 90.7 90.0 88.8 78.2
"""
_NAMES_YAO = tuple(f"fashion_mnist_{rate}" for rate in (20, 30, 40, 45, 50))


def _read(text: str, names: tuple[str, ...]) -> dict[str, dict[str, Number]]:
  """A table's numbers by column, then by method."""
  found: dict[str, dict[str, Number]] = {name: {} for name in names}
  for line in text.strip().splitlines():
    method, *cells = line.split()
    for name, cell in zip(names, cells, strict=True):
      found[name][method] = Number(*map(float, cell.split("±")))
  return found


def _columns() -> dict[str, Column]:
  first = _read(_TABLE_1, _NAMES_1) | _read(_TABLE_2, _NAMES_2)
  trained = _read(_TABLE_3, _NAMES_3)
  fusion = {
    name: Column(title, first[name] | trained.get(name, {}))
    for name, title in _TITLES.items()
  }
  instance = {
    name: Column(
      f"Fashion-MNIST, {name[-2:]} % instance-dependent noise, ResNet-18",
      numbers,
      "Yao et al. (NeurIPS 2021)",
    )
    for name, numbers in _read(_YAO, _NAMES_YAO).items()
  }
  return fusion | instance


COLUMNS: Mapping[str, Column] = _columns()
