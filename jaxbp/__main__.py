"""`python -m jaxbp bench | compare | explain | tune`."""

import argparse
import importlib
import os
import shlex
import sys

from . import __version__
from ._interrupt import watch

COMMANDS = {
    "bench": ("jaxbp._bench", "time the hand-written rules against the automatic ones"),
    "compare": ("jaxbp._compare._command", "check a hand-written rule: its values, errors, time and memory"),
    "tune": ("jaxbp._tune._command", "find the fastest algorithm for each convolution, on this machine"),
    "explain": ("jaxbp._explain", "show a small case of an op, forward and backward, as text, page or picture"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its module is imported only then."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m jaxbp", description="jaxbp's tools.")
    parser.add_argument("--version", action="version", version=f"jaxbp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        if arguments[:1] == [name]:
            importlib.import_module(module).add_arguments(command)
    args = parser.parse_args(arguments)
    args.command_line = shlex.join(["python", "-m", "jaxbp", *arguments])
    try:
        status = importlib.import_module(COMMANDS[args.command][0]).run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read, `head` for one, has seen enough; nobody is left to be told, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    watch("jaxbp")
    sys.exit(main())
