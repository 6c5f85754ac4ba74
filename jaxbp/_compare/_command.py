"""`python -m jaxbp compare`: compare a function of a user's file, or jaxbp's own ops, from the command line."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import json
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._interrupt import end, on_ctrl_c, undisturbed
from .._output import require_writable, write_whole
from . import TRANSFORMS, compare
from ._report import Comparison


class Case(NamedTuple):
    """One call of one of jaxbp's ops: shapes of random arrays, further arguments, keywords."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    further: tuple = ()
    keywords: dict[str, Any] = {}  # noqa: RUF012  (never written to)


_IMAGE = (2, 9, 8, 4)
_WINNERS = np.random.default_rng(0).integers(4, size=(2, 4, 4, 4))
CASES = (
    Case("conv", (_IMAGE, (3, 3, 4, 6), (6,))),
    Case("conv", (_IMAGE, (3, 3, 4, 6)), (), {"strides": 2, "padding": "VALID"}),
    Case("conv", (_IMAGE, (3, 3, 1, 8)), (), {"feature_group_count": 4}),
    Case("conv", (_IMAGE, (2, 3, 4, 6)), (), {"kernel_dilation": 2, "input_dilation": (2, 1), "padding": 1}),
    Case("conv", (_IMAGE, (1, 1, 4, 6))),
    Case("conv_general_dilated", ((2, 4, 9, 8), (6, 4, 3, 3)), ((1, 2), "SAME")),
    Case("conv_transpose", (_IMAGE, (3, 3, 4, 6)), ((2, 2), "SAME")),
    Case("max_pool", (_IMAGE,), ((2, 2), (2, 2))),
    Case("max_pool", (_IMAGE,), ((3, 3), (2, 2), "SAME")),
    Case("min_pool", (_IMAGE,), ((3, 2), (1, 2))),
    Case("avg_pool", (_IMAGE,), ((2, 2), (2, 2))),
    Case("avg_pool", (_IMAGE,), ((3, 3), (2, 2), "SAME", False)),
    Case("sum_pool", (_IMAGE,), ((3, 3),)),
    Case("lp_pool", (_IMAGE,), ((2, 2), (2, 2))),
    Case("max_pool_with_winners", (_IMAGE,), ((2, 2), (2, 2))),
    Case("max_unpool", ((2, 4, 4, 4),), (_WINNERS, (2, 2), (2, 2))),
    Case("adaptive_avg_pool", (_IMAGE,), ((3, 2),)),
    Case("adaptive_max_pool", (_IMAGE,), ((3, 2),)),
    Case("dense", ((5, 7), (7, 3), (3,))),
    Case("relu", ((5, 7),)),
    Case("sigmoid", ((5, 7),)),
    Case("tanh", ((5, 7),)),
    Case("softmax_cross_entropy", ((5, 7),), (np.array([0, 6, 3, 3, 1]),)),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Compare hand-written gradients with automatic ones. Without a target, or with names of jaxbp's ops, "
        "compares those; with module:function or file.py:function, that function."
    )
    parser.add_argument("targets", nargs="*", help="names of jaxbp's ops, or one module:function")
    add_array_arguments(parser)
    parser.add_argument(
        "--automatic", metavar="MODULE:FUNCTION", help="the same function without the rule (default: found by itself)"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float16", "bfloat16", "float32"],
        help="dtype of the arrays (default: float32)",
    )
    parser.add_argument("--integers", action="store_true", help="small integers: sums are exact, and pools have ties")
    parser.add_argument("--seed", type=int, default=0, help="which random arrays (default: 0)")
    parser.add_argument(
        "--transforms",
        type=_transforms,
        default=TRANSFORMS,
        metavar="NAME,NAME",
        help=f"what to repeat the comparison under (default: all, {', '.join(TRANSFORMS)})",
    )
    parser.add_argument(
        "--time",
        action=argparse.BooleanOptionalAction,
        help="measure time and memory (default: a user's function yes, jaxbp's ops no)",
    )
    parser.add_argument("--verbose", action="store_true", help="print every report, not only the wrong ones")
    parser.add_argument("--json", metavar="FILE", help="write all reports there")


def add_array_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how the arguments of a user's function are given."""
    parser.add_argument(
        "--shape",
        dest="arguments",
        action="append",
        type=_shape,
        metavar="8,28,28,1",
        help="a random array of this shape as the function's next argument",
    )
    parser.add_argument(
        "--value",
        dest="arguments",
        action="append",
        type=_literal,
        metavar="LITERAL",
        help="a Python literal as the function's next argument",
    )
    parser.add_argument(
        "--keyword",
        action="append",
        default=[],
        type=_keyword,
        metavar="NAME=LITERAL",
        help="a keyword argument of the function",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command: 0 if every row is right, 1 if one is wrong, 2 if the command line makes no sense."""
    reports: list[tuple[str, Comparison]] = []

    def stop() -> None:
        _save(args, reports)
        end("interrupted")

    try:
        _check(args)
        mine = any(":" in target for target in args.targets)
        try:
            with on_ctrl_c(stop):
                (_user_report if mine else _own_reports)(args, reports)
        finally:
            with undisturbed:
                saved = _save(args, reports)
    except (TypeError, ValueError, MemoryError) as error:
        print(f"jaxbp compare: {str(error).removeprefix('compare: ')}", file=sys.stderr)
        return 2
    wrong = [name for name, report in reports if not report.ok]
    if len(reports) > 1:
        print(f"{len(reports) - len(wrong)} of {len(reports)} comparisons are right")
    return 2 if not saved else 1 if wrong else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would fail only after something was compared."""
    if args.json is not None:
        require_writable("--json", args.json)
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed} must be 0 or more")
    if unknown := [name for name in args.transforms if name not in TRANSFORMS]:
        raise ValueError(f"--transforms {unknown[0]!r} is not known; use {', '.join(TRANSFORMS)}")


def _save(args: argparse.Namespace, reports: list[tuple[str, Comparison]]) -> bool:
    """Write all reports so far to --json; where that fails, print them, and False."""
    if args.json is None or not reports:
        return True
    entries = [{"case": name, **report.to_dict()} for name, report in reports]
    text = json.dumps(entries, indent=2, allow_nan=False) + "\n"
    try:
        write_whole(args.json, lambda file: file.write_text(text))
    except OSError as error:
        print(f"jaxbp compare: --json {args.json}: {error.strerror}, so it is printed instead", file=sys.stderr)
        print(text)
        return False
    return True


def _user_report(args: argparse.Namespace, reports: list[tuple[str, Comparison]]) -> None:
    """The report for a function of the user's."""
    if len(args.targets) != 1:
        raise ValueError(f"give one module:function at a time, not {len(args.targets)} targets")
    if not args.arguments:
        raise ValueError(f"{args.targets[0]} needs arguments: give --shape 8,28,28,1 for each array")
    automatic = _load(args.automatic) if args.automatic else None
    manual, arrays = function_and_arguments(args.targets[0], args)
    report = compare(
        manual,
        *arrays,
        automatic=automatic,
        key=args.seed,
        transforms=args.transforms,
        time=args.time is not False,
        memory=args.time is not False,
        **dict(args.keyword),
    )
    reports.append((args.targets[0], report))
    print(report)


def function_and_arguments(target: str, args: argparse.Namespace) -> tuple[Callable, list]:
    """The function that a target names, and what the command line gives it."""
    function, arrays = _load(target), _arrays(args.arguments, args)
    _require_fit(target, function, arrays, dict(args.keyword))
    return function, arrays


def _require_fit(target: str, function: Any, arrays: list, keywords: dict[str, Any]) -> None:
    """Refuse arguments that the function does not take: the command line is wrong, not the rule."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arrays, **keywords)
    except TypeError as error:
        given = f"{len(arrays)} {'array' if len(arrays) == 1 else 'arrays'}"
        given = " and ".join([given, *(f"{name}=" for name in keywords)])
        raise ValueError(f"{target} takes {signature}, but the command line gives {given}: {error}") from None


def _own_reports(args: argparse.Namespace, reports: list[tuple[str, Comparison]]) -> None:
    """A report for each case of jaxbp's own ops, one line each."""
    import jaxbp

    if args.arguments or args.keyword or args.automatic:
        raise ValueError("--shape, --value, --keyword and --automatic go with a module:function")
    known = list(dict.fromkeys(case.op for case in CASES))
    if unknown := [target for target in args.targets if target not in known]:
        raise ValueError(f"{unknown[0]!r} is no op of jaxbp; known are {', '.join(known)}; yours is module:function")
    print(f"{'op':<66} {'manual':>9} {'automatic':>9}  error/eps")
    for case in CASES:
        if args.targets and case.op not in args.targets:
            continue
        manual, automatic = (getattr(module, case.op) for module in (jaxbp, jaxbp.automatic))
        arguments = [*_arrays([_Shape(shape) for shape in case.shapes], args), *case.further]
        report = compare(
            manual,
            *arguments,
            automatic=automatic,
            key=args.seed,
            transforms=args.transforms,
            time=bool(args.time),
            memory=bool(args.time),
            **case.keywords,
        )
        further = [str(item) for item in case.further if not isinstance(item, np.ndarray)]
        words = [*map(_plain, case.shapes), *further, *(f"{k}={v}" for k, v in case.keywords.items())]
        name = f"{case.op}({', '.join(words)})"
        reports.append((name, report))
        errors = [(row.manual_error or 0.0, row.automatic_error or 0.0) for row in report.rows]
        worst = list(map(max, zip(*errors, strict=True)))
        print(f"{name:<66} {worst[0]:9.2g} {worst[1]:9.2g}  {'ok' if report.ok else 'WRONG'}", flush=True)
        if args.verbose or args.time or not report.ok:
            print(f"\n{report}\n")


class _Shape(tuple):
    """A shape on the command line, as opposed to a tuple given as a value."""


def _plain(shape: tuple[int, ...]) -> str:
    """A shape as 2x9x8x4."""
    return "x".join(map(str, shape))


def _arrays(arguments: list, args: argparse.Namespace) -> list:
    """The arguments with a random array for each shape."""
    rng = np.random.default_rng(args.seed)

    def draw(shape: _Shape):
        values = rng.integers(-3, 4, shape) if args.integers else rng.standard_normal(shape)
        return jnp.asarray(values.astype(jnp.dtype(args.dtype)))

    return [draw(item) if isinstance(item, _Shape) else item for item in arguments]


def _load(target: str) -> Callable:
    """The function that module:function or file.py:function names."""
    place, _, name = target.partition(":")
    if not place or not name:
        raise ValueError(f"{target!r} is not module:function")
    try:
        module = _import(place)
    except (Exception, SystemExit) as error:  # whatever the user's own lines raise
        raise ValueError(f"cannot import {place}: {_own_line(error)}") from error
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{place} has no {name}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{target} is {found!r:.40}, not a function")
    return found


def _import(place: str) -> ModuleType:
    """The module of that name, or in that file, which finds its neighbours as a program does."""
    if not place.endswith(".py"):
        sys.path.insert(0, "")
        return importlib.import_module(place)
    sys.path.insert(0, str(Path(place).resolve().parent))
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules.setdefault(spec.name, module)
    spec.loader.exec_module(module)
    return module


def _own_line(error: BaseException) -> str:
    """The error in one line, with the last file and line of the user's own that led to it."""
    text = f"{type(error).__name__}: {error}"
    paths = sysconfig.get_paths()
    others = (paths["stdlib"], paths["purelib"], paths["platlib"], str(Path(__file__).parents[1]), "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        text = f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    elif frames:
        text = f"{frames[-1].filename}:{frames[-1].lineno}: {text}"
    return " ".join(text.split())


def _shape(text: str) -> _Shape:
    """8,28,28,1 as a shape."""
    try:
        shape = _Shape(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        shape = _Shape((-1,))
    if any(size < 0 for size in shape):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write for example 8,28,28,1")
    return shape


def _literal(text: str) -> Any:
    """A Python literal."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise argparse.ArgumentTypeError(f"{text!r} is no Python literal") from None


def _keyword(text: str) -> tuple[str, Any]:
    """NAME=LITERAL; a word that is no literal is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LITERAL")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _transforms(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
