"""Eight fake CPU devices, strict ranks, fixed property-test seeds."""

import os
import pathlib
from importlib import metadata

# All of it must stand before JAX starts.
os.environ.setdefault("NPROC", "16")  # a pool wide enough for 8 fake devices
# Most of the suite's time is XLA's compiler, and what it makes runs for
# milliseconds: plain code will do. .ci/slow compiles as users do.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
  # A flag that is unknown ends the process, and JAX 0.11 lost this one.
  + (
    " --xla_cpu_use_fusion_emitters=false"
    if [int(x) for x in metadata.version("jaxlib").split(".")[:2]] < [0, 11]
    else ""
  ),
)
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
# Many tests compile the same programs; workers share them.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile(
  "kfkd", max_examples=40, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("kfkd")
