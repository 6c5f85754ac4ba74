"""Settings of every test: no silent promotion of dtypes or ranks, and 8 virtual CPU devices."""

import os

# The tests compile thousands of small programs and run each once. Programs that the tests start inherit this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
from hypothesis import HealthCheck, settings

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# JAXBP_EXAMPLES=5000 asks for a long random comparison, of new cases each time; the default is short and fixed.
examples = os.environ.get("JAXBP_EXAMPLES")
settings.register_profile(
    "jaxbp",
    max_examples=int(examples or 25),
    derandomize=examples is None,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("jaxbp")
