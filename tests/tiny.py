"""The configuration of tests that go the whole way: seconds, not minutes."""

from kfkd_jax import config as config_lib


def tiny_config(**changes):
  config = config_lib.default_config()
  config.data.num_train = 120
  config.selection.num = 60
  config.model.name = "mlp"
  config.model.width = 16
  config.augment.pad = config.augment.cutout = 0
  config.train.epochs = 6
  config.train.batch_size = 40
  config.history.resume_every = 2
  config.compare.independent = 2
  config.compare.bootstrap_samples = 200
  config.report.num_examples = 2
  for key, text in changes.items():
    config_lib.override(config, key.replace("__", "."), text)
  config_lib.validate(config)
  return config
