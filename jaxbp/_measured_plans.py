"""Measured plans: to measure them, and to put them to use. Nothing is measured, read or written unless asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ._plan import _measured
from ._plan._measured import File

if TYPE_CHECKING:
    from ._tune import Report


def tune(function: Callable[..., Any], *args: Any, file: File, seconds: float | None = None) -> Report:
    """Find the fastest algorithm for each convolution and pool of a program, on this machine, and take it from now on.

    Every convolution is three sums: output, input gradient, kernel gradient. Every pool is two maps: output and input
    gradient. Of each that `function` computes, every algorithm that applies is timed. The choice of jaxbp's own tables
    stays, unless another algorithm is faster by 5 % and keeps the limits on memory and errors (docs/tune.md).

    Args:
      function: what is to be fast, for example a whole training step; it is traced, and not called.
      args: its arguments; of arrays only shapes, dtypes and shardings count, so `jax.ShapeDtypeStruct` will do. Where
        they lie on several devices, each device's part is measured.
      file: where the plans are kept, a JSON file: created, or merged with what it holds. What it holds for this
        machine is not measured again.
      seconds: about how long to measure, the sums with most operations first; None: all of them.

    Returns:
      A report: `rows`, each with the sum, the tables' choice, the winner and the gain; `gain`, an estimate of how many
      times as fast all sums of the function are as by the tables. Printed, it is a table.

    Raises:
      TypeError: function cannot be called; file is no path.
      FileNotFoundError: the file's folder does not exist.
      ValueError: the file is broken, was written by a newer jaxbp, or cannot be written; seconds is negative; JAX runs
        on a platform that jaxbp has no algorithms for.

    Example:
      >>> import os, tempfile, jax, jax.numpy as jnp, jaxbp
      >>> def step(kernel, x):
      ...     return jax.grad(lambda kernel: jaxbp.conv(x, kernel).sum())(kernel)
      >>> file = os.path.join(tempfile.mkdtemp(), "plans.json")
      >>> report = jaxbp.tune(step, jnp.ones((3, 3, 4, 8)), jnp.ones((2, 8, 8, 4)), file=file, seconds=0)
      >>> report.gain
      1.0
      >>> jaxbp.use_plans(None)

    Source: Frigo and Johnson, "The design and implementation of FFTW3" (2005), on plans that are measured.
    """
    from ._tune import tune as tune_now

    return tune_now(function, *args, file=file, seconds=seconds)


def use_plans(file: File | None) -> None:
    """Take the measured plans of a file from now on, in all threads.

    Functions that were compiled before are compiled again. Sums that the file does not have are planned by the tables.
    All processes of a distributed program must take the same plans, as their programs must be equal.

    Args:
      file: a file that `tune` wrote; None: no plans, not even those of the environment variable `JAXBP_PLANS`, which
        names a file for programs that never call this.

    Raises:
      TypeError, IsADirectoryError: file names no file.
      FileNotFoundError: there is no such file.
      ValueError: the file is broken, or was written by a newer jaxbp.

    Example:
      >>> import jaxbp
      >>> jaxbp.use_plans(None)

    Source: FFTW's wisdom: Frigo and Johnson, "The design and implementation of FFTW3" (2005).
    """
    _measured.use(None if file is None else _measured.load(file))


def plans(file: File | None) -> AbstractContextManager[None]:
    """Take the measured plans of a file inside a block, whatever `use_plans` or the environment say.

    Args:
      file: a file that `tune` wrote; None: no plans, so that the tables choose.

    Returns:
      A context manager for one `with` statement, of this thread alone.

    Raises:
      TypeError, IsADirectoryError: file names no file.
      FileNotFoundError: there is no such file.
      ValueError: the file is broken, or was written by a newer jaxbp.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> with jaxbp.plans(None):
      ...     y = jaxbp.conv(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4)))
      >>> y.shape
      (1, 8, 8, 4)

    Source: FFTW's wisdom: Frigo and Johnson, "The design and implementation of FFTW3" (2005).
    """
    return _measured.using(None if file is None else _measured.load(file))
