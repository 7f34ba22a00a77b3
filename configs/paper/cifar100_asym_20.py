"""CIFAR-100, 20 % asymmetric noise, ResNet-18: Tables 2 and 3.

    kfkd run --config=configs/paper/cifar100_asym_20.py

Test accuracy to reach, in %, mean and standard error over three halvings:

    final        67.1 ± 0.5
    horizontal   73.4 ± 0.1
    fixed_jumps  73.9 ± 0.1
    kf           74.2 ± 0.1
    fge          67.1 ± 0.2
    swa          66.6 ± 0.1
    snapshot     72.1 ± 0.4

One file for both tables: the setting is the same. Meant for: one accelerator
with 16 GB; 200 checkpoints take about 9 GB of disk. Not run yet.

Not known: recipe (epochs, learning rate, batch, augmentation) and the
generator of the noise (here the next class within the superclass);
`common.py` says what is taken instead.
"""

import pathlib

from kfkd_jax import config as config_lib

COMMON = pathlib.Path(__file__).with_name("common.py")
COLUMN = "paper=cifar100_asym_20,noise=asymmetric,rate=0.2,trained"


def get_config(args=""):
  """Arguments: those of `common.py`, such as dryrun."""
  return config_lib.load_config(f"{COMMON}:{COLUMN},{args}")
