"""`python -m jaxbp tune`: measure the plans of a function, of the benchmark's layers or of its models."""

import argparse
import sys
from collections import Counter
from functools import partial

import jax.numpy as jnp

import jaxbp

from .._bench import DTYPES
from .._bench._algorithms import platform
from .._bench._models import MODELS, Model, initial_parameters, jax_step, training_data
from .._bench._plan import problems
from .._bench._random import random_cases
from .._bench._suite import CASES, Case
from .._compare import _command as compare_command
from .._interrupt import INTERRUPTED, end, on_ctrl_c
from . import check, measure
from ._collect import Problems, sums_of
from ._report import Report, Row

DESCRIPTION = """\
Find the fastest algorithm for each sum of a convolution (the output, the gradient of the input, the gradient of the
kernel) and for each map of a pool (the output, the gradient of the input) on this machine, and keep it in a file of
plans.

What is tuned: a function of yours, a whole training step for example, as module:function or file.py:function with
--shape for each array; or layers (--suite, --random N) or models (--models) of the benchmark. What the file holds
for this machine is not measured again. A program takes the plans by jaxbp.use_plans(FILE) or JAXBP_PLANS=FILE.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description, parser.formatter_class = DESCRIPTION, argparse.RawDescriptionHelpFormatter
    parser.add_argument("target", nargs="?", metavar="MODULE:FUNCTION", help="a function of yours")
    compare_command.add_array_arguments(parser)
    parser.add_argument("--suite", action="store_true", help="the layers that bench times")
    parser.add_argument("--random", type=int, metavar="N", help="N layers of random shapes, each family in turn")
    parser.add_argument("--seed", type=int, metavar="S", help="which random layers and arrays (default: 0)")
    parser.add_argument("--models", action="store_true", help="the training steps that bench --models times")
    parser.add_argument("--dtype", default="float32", help=f"one of {', '.join(DTYPES)} (default: float32)")
    parser.add_argument("--file", default="plans.json", help="where the plans are kept (default: plans.json)")
    parser.add_argument("--seconds", type=float, metavar="S", help="about how long to measure (default: all of it)")


def run(args: argparse.Namespace) -> int:
    """Run the command: 0, 2 if the command line makes no sense, 130 if interrupted; what is measured is kept."""
    rows: list[Row] = []

    def stop() -> None:
        end("interrupted", str(Report(tuple(rows), args.file, len(rows))) if rows else "")

    try:
        _check(args)
        with on_ctrl_c(stop):
            print(measure(_problems(args), args.file, args.seconds, rows))
    except (TypeError, ValueError, OSError, MemoryError) as error:
        print(f"jaxbp tune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxbp tune: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would fail only later."""
    asked = {"--suite": args.suite, "--random": args.random is not None, "--models": args.models}
    named = [*([args.target] if args.target else []), *(name for name, given in asked.items() if given)]
    if len(named) != 1:
        given = " and ".join(named) or "none of them"
        raise ValueError(f"give one of MODULE:FUNCTION, --suite, --random and --models, not {given}")
    if args.random is not None and args.random < 1:
        raise ValueError(f"--random {args.random} must be a number of layers, 1 or more")
    if args.seed is not None and args.random is None and args.target is None:
        raise ValueError("--seed chooses random layers or arrays; say which with --random or module:function")
    if args.dtype not in DTYPES:
        raise ValueError(f"--dtype {args.dtype!r} is not known; use one of {', '.join(DTYPES)}")
    if args.target is None and (args.arguments or args.keyword):
        raise ValueError("--shape, --value and --keyword go with a module:function")
    if args.target is not None and not args.arguments:
        raise ValueError(f"{args.target} needs arguments: give --shape 8,28,28,1 for each array")
    check(args.file, args.seconds)


def _problems(args: argparse.Namespace) -> Problems:
    """The sums of what is to be tuned."""
    if args.target is not None:
        args.seed, args.integers = args.seed or 0, False
        function, arguments = compare_command.function_and_arguments(args.target, args)
        return sums_of(partial(function, **dict(args.keyword)), tuple(arguments), platform())
    if args.models:
        return sum((_of_model(model, args.dtype) for model in MODELS), Counter())
    cases = CASES if args.random is None else random_cases(args.random, args.seed or 0)
    return sum((_of_case(case, args.dtype) for case in cases), Counter())


def _of_model(model: Model, dtype: str) -> Problems:
    """The sums of a model's training step."""
    parameters = initial_parameters(model, jaxbp, jnp.dtype(dtype))
    return sums_of(jax_step(model, jaxbp), (parameters, *training_data(model, jnp.dtype(dtype))), platform())


def _of_case(case: Case, dtype: str) -> Problems:
    """The three sums of a layer, or the two maps of a pool."""
    return Counter(problems(case, dtype, platform()).values())
