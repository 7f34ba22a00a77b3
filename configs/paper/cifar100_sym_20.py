"""CIFAR-100, 20 % symmetric noise, ResNet-18: Tables 2 and 3.

    kfkd run --config=configs/paper/cifar100_sym_20.py

Test accuracy to reach, in %, mean and standard error over three halvings:

    final        65.4 ± 0.3
    horizontal   71.10 ± 0.38
    fixed_jumps  72.8 ± 0.1
    kf           72.8 ± 0.1
    fge          66.5 ± 0.1
    swa          65.6 ± 0.4
    snapshot     70.8 ± 0.5

One file for both tables: the setting is the same. Meant for: one accelerator
with 16 GB; 200 checkpoints take about 9 GB of disk. Not run yet.

Not known: recipe (epochs, learning rate, batch, augmentation) and the
generator of the noise (here another class, uniformly: the rate counts labels
that change); `common.py` says what is taken instead.
"""

import pathlib

from kfkd_jax import config as config_lib

COMMON = pathlib.Path(__file__).with_name("common.py")
COLUMN = "paper=cifar100_sym_20,noise=symmetric,rate=0.2,trained"


def get_config(args=""):
  """Arguments: those of `common.py`, such as dryrun."""
  return config_lib.load_config(f"{COMMON}:{COLUMN},{args}")
