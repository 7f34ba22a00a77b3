"""ImageNet, ResNet-50: Table 1.

    kfkd run --config=configs/paper/imagenet_resnet50.py:root=DIR

Test accuracy to reach, in %, mean and standard error over three halvings:

    final                 75.74 ± 0.14
    horizontal_one_step   76.46 ± 0.14
    fixed_jumps_one_step  75.50 ± 0.09
    kf_one_step           75.88 ± 0.14
    horizontal            76.42 ± 0.10
    fixed_jumps           75.72 ± 0.18
    kf                    76.52 ± 0.16

DIR holds ImageNet as TFDS prepared it. Meant for: eight accelerators with 16
GB or more; 100 checkpoints take about 10 GB. Not run yet.

Not known: recipe (epochs, learning rate, batch, augmentation); `common.py`
says what is taken instead.
"""

import pathlib

from kfkd_jax import config as config_lib

COMMON = pathlib.Path(__file__).with_name("common.py")
COLUMN = "paper=imagenet_resnet50,data=imagenet2012,model=resnet50"


def get_config(args=""):
  """Arguments: those of `common.py`, such as dryrun."""
  return config_lib.load_config(f"{COMMON}:{COLUMN},{args}")
