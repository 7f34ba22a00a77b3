"""The 1,797 scanned digits with label noise: the main job, under two minutes.

    kfkd run --config=configs/digits.py:noise=symmetric,rate=0.4

`protocol=carved`, `paper` and `practitioner` say which points select, and with
which labels (`kfkd_jax/config/protocols.py`). `runlocal` is a short version
that passes through every stage in seconds.
"""

from kfkd_jax import config as config_lib


def get_config(args=""):
  """Arguments: noise (kind), rate, protocol, runlocal."""
  arguments = config_lib.parse_arguments(
    args, noise="pair", rate=0.4, protocol="carved", runlocal=False
  )
  config = config_lib.default_config()
  config_lib.set_noise(config, arguments.noise, arguments.rate)
  config_lib.set_protocol(config, arguments.protocol)
  if arguments.runlocal:
    config.data.num_train = 300
    config.selection.num = 100
    config.train.epochs = 8
    config.train.batch_size = 32
    config.history.resume_every = 2
    config.model.width = 8
    config.compare.independent = 2
    config.compare.bootstrap_samples = 200
  return config
