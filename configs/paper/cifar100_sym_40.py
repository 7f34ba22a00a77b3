"""CIFAR-100, 40 % symmetric noise, ResNet-18: Tables 2 and 3.

    kfkd run --config=configs/paper/cifar100_sym_40.py

Test accuracy to reach, in %, mean and standard error over three halvings:

    final        56.9 ± 0.1
    horizontal   65.2 ± 0.1
    fixed_jumps  66.5 ± 0.1
    kf           67.0 ± 0.1
    fge          52.1 ± 0.1
    swa          50.0 ± 0.1
    snapshot     63.8 ± 0.2

One file for both tables: the setting is the same. Meant for: one accelerator
with 16 GB; 200 checkpoints take about 9 GB of disk. Not run yet.

Not known: recipe (epochs, learning rate, batch, augmentation) and the
generator of the noise (here another class, uniformly: the rate counts labels
that change); `common.py` says what is taken instead.
"""

import pathlib

from kfkd_jax import config as config_lib

COMMON = pathlib.Path(__file__).with_name("common.py")
COLUMN = "paper=cifar100_sym_40,noise=symmetric,rate=0.4,trained"


def get_config(args=""):
  """Arguments: those of `common.py`, such as dryrun."""
  return config_lib.load_config(f"{COMMON}:{COLUMN},{args}")
