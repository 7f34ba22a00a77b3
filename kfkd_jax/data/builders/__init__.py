"""TFDS builders that need no TensorFlow to download, unpack and encode.

They carry the names, versions and features of TFDS's own builders, so what
either of the two has prepared is read by the other. None is registered with
TFDS (the names are taken there): `kfkd_jax.data.builder` finds them.
"""

from tensorflow_datasets.core import registered

with registered.skip_registration():
  from kfkd_jax.data.builders.cifar import Cifar10, Cifar100
  from kfkd_jax.data.builders.digits import Digits
  from kfkd_jax.data.builders.mnist import FashionMnist, Mnist
  from kfkd_jax.data.builders.synthetic import Synthetic, SyntheticConfig

BUILDERS = {
  cls.name: cls
  for cls in (Cifar10, Cifar100, Mnist, FashionMnist, Digits, Synthetic)
}

__all__ = [
  "BUILDERS",
  "Cifar10",
  "Cifar100",
  "Digits",
  "FashionMnist",
  "Mnist",
  "Synthetic",
  "SyntheticConfig",
]
