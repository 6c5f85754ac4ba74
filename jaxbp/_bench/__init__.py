"""`python -m jaxbp bench`: time the hand-written rules against JAX's automatic ones, and against PyTorch's."""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib import metadata
from types import ModuleType
from typing import Any

import jax

from .._adapter import install
from .._interrupt import INTERRUPTED, end, on_ctrl_c, undisturbed
from .._measured_plans import plans
from .._output import picture_file, require_picture, require_writable, write_whole
from .._plan._machine import cores, processor
from . import _algorithms, _devices, _per_example, _populations
from ._cases import measure_case, measure_model, warm_up
from ._measure import machine_limits
from ._models import MODELS
from ._plan import plan_text
from ._programs import WHOLE
from ._random import random_cases
from ._result import Result, to_dict
from ._suite import CASES
from ._table import Table, means

DTYPES = ("float32", "bfloat16", "float16")

DESCRIPTION = """\
Time jaxbp's hand-written gradients ("manual") against those of the same ops on plain lax, differentiated by JAX
("automatic").

Each case is one compiled program: the forward pass and all gradients. Programs take turns (A B B A, B A A B), so that a
machine whose speed drifts is the same for both; PyTorch takes turns with jaxbp afterwards, where it disturbs neither.
A ratio above 1 says that jaxbp is faster. A convolution has three sums, each with an algorithm of its own: the output,
the gradient of the input, and the gradient of the kernel.
"""

COLUMNS = """\
columns:
  manual, automatic, PyTorch   milliseconds of the fastest sample; manual is jaxbp
  auto/man, PyT/man            their time over jaxbp's: median of the rounds' ratios, and ratio of the fastest samples
  % of limit                   how near jaxbp comes to what this machine can do: the larger of the sum's operations
                               at the rate of a square matrix product and its arrays at the bandwidth of a copy;
                               above 100 where the arrays stay in the cache
  MiB temporary                what the compiled program allocates besides arguments and results
  MiB kept                     what the forward pass keeps for the backward pass besides the arguments
  s to compile                 to trace, to lower, and the faster of two times in the compiler
  error in eps                 largest error of all gradients against float64, over eps times the largest entry
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description, parser.epilog = DESCRIPTION, COLUMNS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--filter", default="", metavar="REGEX", help="only cases in whose 'family: name' this is found"
    )
    parser.add_argument("--dtype", default="float32", help=f"one of {', '.join(DTYPES)} (default: float32)")
    parser.add_argument(
        "--batch", type=int, default=1, metavar="TIMES", help="multiply the images by this, to fill a GPU (default: 1)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long to time each pair (default: 1)")
    parser.add_argument("--parts", action="store_true", help="also time the forward pass and each gradient alone")
    parser.add_argument("--torch", action="store_true", help="also time PyTorch on the same data, channels last")
    parser.add_argument("--errors", action="store_true", help="also show the errors against float64")
    parser.add_argument("--models", action="store_true", help="whole training steps instead of single layers")
    parser.add_argument(
        "--random", type=int, metavar="N", help="N layers of random shapes instead of the suite, each family in turn"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="which random layers (default: 0)")
    parser.add_argument(
        "--algorithms", action="store_true", help="time every algorithm that applies to each sum, and the chosen one"
    )
    parser.add_argument(
        "--loops", action="store_true", help="time training steps of small networks in lax.scan, and in a Python loop"
    )
    parser.add_argument(
        "--populations", action="store_true", help="time training steps of many small networks in vmap, and in lax.map"
    )
    parser.add_argument("--plans", metavar="FILE", help="take the algorithms that `tune` measured and wrote there")
    parser.add_argument(
        "--per-example", action="store_true", help="time norms and clipped sums of per-example gradients, of models"
    )
    parser.add_argument("--plan", action="store_true", help="measure nothing: print each sum's algorithm, and why")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="compile for N devices (on a CPU, virtual ones): what each is sent"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything measured there")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios as bars there (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Run the command: 0, 1 if a rule does not run, 2 if the command line makes no sense, 130 if interrupted."""
    try:
        _check(args)
        chosen = _chosen(args)
    except ValueError as error:
        print(f"jaxbp bench: {error}", file=sys.stderr)
        return 2
    try:
        with contextlib.nullcontext() if args.plans is None else plans(args.plans):
            if args.plan:
                print(plan_text(chosen, args.dtype))
                return 0
            return _run(args, chosen)
    except (FileNotFoundError, ValueError) as error:
        print(f"jaxbp bench: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"jaxbp bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxbp bench: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(args: argparse.Namespace, chosen: list) -> int:
    """Measure, print, and write what was asked for."""
    machine = _machine(args)
    print(f"{machine}\n{_load()}")
    record: dict[str, Any] = {"machine": machine, "date": date.today().isoformat(), "command": args.command_line}
    warm_up()
    if args.algorithms:
        return _time_lines(args, record, chosen, _algorithms.measure_choices, _algorithms)
    if args.devices is not None:
        print(_devices.HEADING, flush=True)
        one = partial(_devices.measure_item, count=args.devices)
        return _time_lines(args, record | {"devices": args.devices}, chosen, one, _devices)
    if args.loops or args.populations:
        return _time_lines(args, record, chosen, _populations.measure_setup, _populations)
    if args.per_example:
        return _time_lines(args, record, chosen, _per_example.measure, _per_example)
    names = [item.name for item in chosen]
    if args.models:
        table = Table(names, torch=args.torch, layers=False, errors=False)
        measure = partial(measure_model, dtype=args.dtype, seconds=args.seconds, torch=args.torch)
    else:
        limits = machine_limits(args.dtype)
        record["limits"] = limits._asdict()
        print(f"limits: matrix product {limits.operations / 1e9:.0f} Gflop/s, copy {limits.traffic / 1e9:.1f} GB/s")
        table = Table(names, torch=args.torch, layers=True, errors=args.errors)
        options = {"parts": args.parts, "torch": args.torch, "errors": args.errors}
        measure = partial(measure_case, dtype=args.dtype, seconds=args.seconds, limits=limits, **options)
    results: list[Result] = []

    def save() -> bool:
        return _save(args, record, [to_dict(result) for result in results])

    def stop() -> None:
        save()
        _draw(args, machine, results)
        end(_stopped(len(results), chosen), _summary(results, args.torch))

    def show(item: Any) -> None:
        results.append(measure(item))
        _clear_progress()
        print(table.lines(results[-1]), flush=True)

    print(table.heading(), flush=True)
    try:
        with on_ctrl_c(stop):
            status = _each(chosen, show)
    finally:
        with undisturbed:
            saved = save()
    print(_summary(results, args.torch), flush=True)
    drawn = _draw(args, machine, results)
    broken = any("manual" not in result.times[WHOLE] for result in results)
    return status or (2 if not (saved and drawn) else int(broken))


def _time_lines(
    args: argparse.Namespace, record: dict[str, Any], items: list, measure: Callable[..., list], of: ModuleType
) -> int:
    """Measure one item after the other, print its lines, and last what they come to, by `of.summary`."""
    found: list[Any] = []
    done: list[Any] = []

    def save() -> bool:
        if not found:
            return True
        means, cases = of.to_record(found)
        return _save(args, record | means, cases)

    def stop() -> None:
        save()
        end(_stopped(len(done), items), of.summary(found))

    def show(item: Any) -> None:
        for line in measure(item, args.dtype, args.seconds):
            found.append(line)
            _clear_progress()
            print(line, flush=True)
        done.append(item)

    try:
        with on_ctrl_c(stop):
            status = _each(items, show)
    finally:
        with undisturbed:
            saved = save()
    print(f"\n{of.summary(found)}", flush=True)
    return status or (0 if saved else 2)


def _each(items: list, show: Callable[[Any], None]) -> int:
    """Measure and print one after the other; on Ctrl-C stop."""
    done = 0
    try:
        for item in _progress(items):
            show(item)
            done += 1
    except KeyboardInterrupt:
        _clear_progress()
        print(_stopped(done, items), file=sys.stderr)
        return INTERRUPTED
    return 0


def _stopped(done: int, items: list) -> str:
    """The line for Ctrl-C."""
    return f"interrupted after {done} of {len(items)}"


def _summary(results: list[Result], torch: bool) -> str:
    """What is printed last."""
    return "\n" + means(results, torch) if results else "nothing was measured"


def _save(args: argparse.Namespace, record: dict[str, Any], cases: list[dict[str, Any]]) -> bool:
    """Write everything measured so far to --json; where that fails, print it, and False."""
    if args.json is None or not cases:
        return True
    text = json.dumps({**record, "cases": cases}, indent=2, allow_nan=False) + "\n"
    try:
        write_whole(args.json, lambda file: file.write_text(text))
    except OSError as error:
        print(f"jaxbp bench: --json {args.json}: {error.strerror}, so it is printed instead", file=sys.stderr)
        print(text)
        return False
    return True


def _draw(args: argparse.Namespace, machine: str, results: list[Result]) -> bool:
    """Draw what was measured so far to --plot; False where that fails."""
    if args.plot is None or not results:
        return True
    from ._plot import plot

    file = picture_file(args.plot)
    try:
        write_whole(file, lambda path: plot(results, path, machine))
    except OSError as error:
        print(f"jaxbp bench: --plot {file}: {error.strerror}", file=sys.stderr)
        return False
    return True


def _progress(items: list) -> Iterator[Any]:
    """Say on a terminal which item is being measured."""
    for number, item in enumerate(items, start=1):
        if sys.stderr.isatty():
            print(f"\r\x1b[K[{number}/{len(items)}] {item.name}", end="", file=sys.stderr, flush=True)
        yield item


def _clear_progress() -> None:
    """Take the progress line away again."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _chosen(args: argparse.Namespace) -> list:
    """The cases or models that the filter finds."""
    items: Any = _per_example.MODELS if args.per_example else MODELS if args.models else ()
    items = (*items, *_populations.LOOPS * args.loops, *_populations.POPULATIONS * args.populations)
    whole = bool(items)
    if not whole:
        items = CASES if args.random is None else random_cases(args.random, args.seed or 0)
    try:
        pattern = re.compile(args.filter, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"--filter {args.filter!r} is not a regular expression: {error}") from None
    found = [item for item in items if pattern.search(f"{item.family}: {item.name}")]
    if not found:
        known = dict.fromkeys(item.name if whole else item.family for item in items)
        kind = "models" if args.models or args.per_example else "programs" if whole else "cases; families are"
        raise ValueError(f"--filter {args.filter!r} finds none of {len(items)} {kind} {', '.join(known)}")
    return [item.enlarged(args.batch) for item in found]


def _check(args: argparse.Namespace) -> None:
    """Refuse what would fail only after everything was measured."""
    if args.dtype not in DTYPES:
        raise ValueError(f"--dtype {args.dtype!r} is not known; use one of {', '.join(DTYPES)}")
    if not (args.seconds >= 0 and math.isfinite(args.seconds)):
        raise ValueError(f"--seconds {args.seconds} must be a number of seconds, 0 or more")
    if args.batch < 1:
        raise ValueError(f"--batch {args.batch} must be a number of times, 1 or more")
    if args.random is not None and args.random < 1:
        raise ValueError(f"--random {args.random} must be a number of layers, 1 or more")
    if args.seed is not None and args.random is None:
        raise ValueError("--seed chooses random layers; say how many with --random")
    if args.random is not None and args.models:
        raise ValueError("--random draws single layers; leave out --models")
    if args.algorithms and (args.models or args.torch or args.errors or args.parts or args.plot is not None):
        raise ValueError("--algorithms times single sums: leave out --models, --torch, --errors, --parts and --plot")
    others = args.models or args.random is not None or args.algorithms or args.plan
    details = args.torch or args.errors or args.parts or args.plot is not None
    loops = args.loops or args.populations
    others = others or details or args.devices is not None
    if (loops and (others or args.per_example)) or (args.per_example and others):
        raise ValueError(
            "--loops, --populations and --per-example time programs of their own: leave out --models, --random, "
            "--devices, --algorithms, --plan, --torch, --errors, --parts and --plot"
        )
    if args.algorithms and args.plan:
        raise ValueError("--algorithms measures what --plan only names: leave out one of them")
    if args.plan and args.models:
        raise ValueError("--plan is about single layers; leave out --models")
    if args.plan and (args.json is not None or args.plot is not None):
        raise ValueError("--plan measures nothing that --json or --plot could write; leave them out")
    if args.devices is not None:
        if args.algorithms or args.plan or args.torch or args.errors or args.parts or args.plot is not None:
            raise ValueError(
                "--devices reads compiled steps: leave out --algorithms, --plan, --torch, --errors, --parts and --plot"
            )
        _devices.require_devices(args.devices)
    if args.torch and importlib.util.find_spec("torch") is None:
        raise ValueError(f"--torch needs torch, which is not installed: {install('torch')}")
    if args.torch and jax.default_backend() != "cpu":
        raise ValueError(f"--torch compares on a CPU, but JAX runs on {jax.default_backend()}: set JAX_PLATFORMS=cpu")
    if args.json is not None:
        require_writable("--json", args.json)
    if args.plot is not None:
        require_picture("--plot", args.plot)


def _machine(args: argparse.Namespace) -> str:
    """What was measured, on what, with what."""
    device = jax.devices()[0]
    kind = processor() if device.platform == "cpu" else device.device_kind
    parts = [f"{kind}, {cores()} cores", f"jax {jax.__version__}, jaxlib {metadata.version('jaxlib')}", args.dtype]
    parts.append(f"{cores()} threads" if device.platform == "cpu" else device.platform)
    if args.torch:
        from . import _torch

        parts.append(_torch.set_up())
    if args.plans is not None:
        parts.append(f"plans of {args.plans}")
    if os.environ.get("XLA_FLAGS"):
        parts.append(f"XLA_FLAGS={os.environ['XLA_FLAGS']}")
    return " | ".join(parts)


def _load() -> str:
    """How busy the machine is."""
    if not hasattr(os, "getloadavg"):
        return "load: unknown"
    load = os.getloadavg()[0]
    busy = ": other programs are running, so ratios are rough" if load > 0.5 * cores() else ""
    return f"load: {load:.1f} on {cores()} cores{busy}"
