"""Imported before all else: Ctrl-C ends an example at any moment, with one line and exit status 130.

How, and why Python's own way will not do, stands in the package's file `_interrupt.py`, which is loaded here without
the package, and so without JAX. Where a test or another program imports an example, no signal is touched.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec


def is_program() -> bool:
    """Whether Python was started with one of the examples: `python examples/article.py`."""
    here, script = os.path.realpath(__file__), os.path.realpath(sys.argv[0])
    if sys.argv[0] not in sys.orig_argv or not script.endswith(".py"):
        return False
    return os.path.dirname(script) == os.path.dirname(here)


package = find_spec("jaxbp")
if package is not None and is_program():
    spec = PathFinder.find_spec("jaxbp._interrupt", package.submodule_search_locations)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.watch(os.path.basename(sys.argv[0]).removesuffix(".py"))
