"""Ctrl-C ends a program at any moment: one line on stderr, exit status 130.

Python would raise KeyboardInterrupt wherever its main thread happens to be: inside a garbage collection, where it is
lost, or inside JAX, whose other threads then compile on while their client is torn down, and crash. So a thread
waits for the signal, and ends the program without tidying up.

Only a program calls `watch`; importing the package touches no signal, unless `python -m jaxbp` is what imports it: by
the time that its `__main__` runs, JAX has been imported.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
# How long to wait for a lock, or for whoever reads the output.
SECONDS = 5.0

# Ctrl-C waits until such a block has ended, and when it has come, no further one begins.
undisturbed = threading.RLock()
_names: list[str] = []
_actions: list[Callable[[], object]] = []


def watch(name: str) -> None:
    """From now on Ctrl-C ends this program, which its one line calls `name`."""
    if _names:
        return
    _names.append(name)
    _actions.insert(0, end)
    reading, writing = os.pipe()
    if os.name != "nt":
        os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda *_: None)
    threading.Thread(target=_wait, args=(reading,), daemon=True).start()
    # Registered before JAX's own: it comes last, when no thread can run any more.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


@contextmanager
def on_ctrl_c(action: Callable[[], object]) -> Iterator[None]:
    """Inside the block a watched program does this on Ctrl-C, in another thread, instead of ending."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


def end(message: str = "interrupted", last_words: str = "") -> None:
    """End the program now, whatever its other threads are doing; this does not return."""
    try:
        limit = threading.Timer(SECONDS, os._exit, [INTERRUPTED])
        limit.daemon = True
        limit.start()
        clear = "\r\x1b[K" if os.isatty(2) else ""
        os.write(2, f"{clear}{': '.join([*_names, message])}\n".encode())
        if last_words:
            print(last_words)
        sys.stdout.flush()
    finally:
        os._exit(INTERRUPTED)


def _wait(reading: int) -> None:
    """Wait for the signal's number, and act."""
    while True:
        if os.read(reading, 1)[0] != signal.SIGINT:
            continue
        undisturbed.acquire(timeout=SECONDS)
        try:
            _actions[-1]()
        except BaseException as error:
            end(f"interrupted, and then {type(error).__name__}: {error}")
        undisturbed.release()


def _is_command(arguments: list[str], original: list[str]) -> bool:
    """Whether Python was started as `python -m jaxbp` and is still looking the package up: argv[0] is "-m" until then.

    What follows the package's name are the arguments: its place among Python's own is found from the end.
    """
    if arguments[:1] != ["-m"] or len(original) < len(arguments):
        return False
    word = original[-len(arguments)]
    return (word[word.find("m") + 1 :] if word.startswith("-") else word) in ("jaxbp", "jaxbp.__main__")


if _is_command(getattr(sys, "argv", []), sys.orig_argv):
    watch("jaxbp")
