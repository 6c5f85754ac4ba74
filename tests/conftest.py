"""Settings of every test: no silent promotion of dtypes or ranks, and 8 virtual CPU devices."""

import importlib.metadata
import os

# Thousands of small programs are compiled here and run once, so they are compiled quickly; programs that a test starts
# inherit it. The long random comparison below compiles as users do.
if "JAXBP_EXAMPLES" not in os.environ:
    flags = "--xla_backend_optimization_level=0"
    if importlib.metadata.version("jaxlib") == "0.10.2":  # later ones refuse the name
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ.setdefault("XLA_FLAGS", flags)

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# JAXBP_EXAMPLES=5000 asks for a long random comparison, of new cases each time; the default is short and fixed.
examples = os.environ.get("JAXBP_EXAMPLES")
settings.register_profile(
    "jaxbp",
    max_examples=int(examples or 6),
    derandomize=examples is None,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("jaxbp")

# Its multiples are spread evenly over [0, 1), and so are every second, third, ... of them: rows and columns of a table.
GOLDEN = (5**0.5 - 1) / 2


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of the cases of a test that is marked `sampled(n)`, about n run by default; the others are exhaustive."""
    tables = {}
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker and not item.get_closest_marker("exhaustive"):
            tables.setdefault((item.parent, item.originalname), (marker.args[0], []))[1].append(item)
    for most, cases in tables.values():
        for i, item in enumerate(cases):
            if (i * GOLDEN) % 1 * len(cases) >= most:
                item.add_marker("exhaustive")
