"""Eight fake CPU devices, strict ranks, fixed property-test seeds."""

import os

os.environ.setdefault("JAX_PLATFORMS", "")
os.environ.setdefault("NPROC", "16")  # a pool wide enough for 8 fake devices
_COUNT = "--xla_force_host_platform_device_count=8"
if _COUNT not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " " + _COUNT).strip()

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile(
  "kfkd", max_examples=40, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("kfkd")
