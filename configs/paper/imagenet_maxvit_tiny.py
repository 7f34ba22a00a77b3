"""ImageNet, MaxViT-T: Table 1.

    kfkd run --config=configs/paper/imagenet_maxvit_tiny.py:root=DIR

Test accuracy to reach, in %, mean and standard error over three halvings:

    final                 82.51 ± 0.15
    horizontal_one_step   82.77 ± 0.10
    fixed_jumps_one_step  83.38 ± 0.10
    kf_one_step           83.34 ± 0.04
    horizontal            82.93 ± 0.14
    fixed_jumps           83.78 ± 0.15
    kf                    83.81 ± 0.14

DIR holds ImageNet as TFDS prepared it. Meant for: a pod slice of 16 chips or
eight GPUs with 80 GB; 60 checkpoints take about 4 GB. Not run yet.

Not known: recipe (epochs, learning rate, batch, augmentation), and whether
the network was trained from scratch or from published weights
(`model.pretrained`); `common.py` says what is taken instead.
"""

import pathlib

from kfkd_jax import config as config_lib

COMMON = pathlib.Path(__file__).with_name("common.py")
COLUMN = "paper=imagenet_maxvit_tiny,data=imagenet2012,model=maxvit_tiny"


def get_config(args=""):
  """Arguments: those of `common.py`, such as dryrun."""
  return config_lib.load_config(f"{COMMON}:{COLUMN},{args}")
