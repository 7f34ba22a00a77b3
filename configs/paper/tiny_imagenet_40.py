"""TinyImageNet, 40 % noise, ResNet-18: Table 2.

    kfkd run --config=configs/paper/tiny_imagenet_40.py:root=DIR

Test accuracy to reach, in %, mean and standard error over three halvings:

    final        49.8 ± 0.3
    horizontal   51.7 ± 0.2
    fixed_jumps  54.16 ± 0.30
    kf           57.0 ± 0.5

DIR holds `tiny-imagenet-200` as its authors pack it. Meant for: one
accelerator with 16 GB; 200 checkpoints take about 9 GB of disk. Not run yet.

Not known: recipe (epochs, learning rate, batch, augmentation), and the kind
of the noise, which the table does not name; symmetric here, `noise=pair` for
the other; `common.py` says what is taken instead.
"""

import pathlib

from kfkd_jax import config as config_lib

COMMON = pathlib.Path(__file__).with_name("common.py")
COLUMN = "paper=tiny_imagenet_40,data=tiny_imagenet,noise=symmetric,rate=0.4"


def get_config(args=""):
  """Arguments: those of `common.py`, such as dryrun."""
  return config_lib.load_config(f"{COMMON}:{COLUMN},{args}")
