"""The files that the commands write: refused before anything is measured, and written whole or not at all."""

import importlib.util
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ._adapter import install
from ._interrupt import end, on_ctrl_c, undisturbed


def require_writable(option: str, file: str | os.PathLike[str]) -> None:
    """Refuse a file that cannot be written; what stands there now stays as it is."""
    folder, name = os.path.split(os.path.abspath(file))
    if os.path.isdir(file) or not os.path.basename(file):
        raise ValueError(f"{option} {file}: give the name of a file, not of a folder")
    if _is_device(file):
        return
    if not os.path.isdir(folder):
        raise ValueError(f"{option} {file}: there is no folder {folder}")
    folder = os.path.dirname(os.path.realpath(file))
    try:
        # Permissions alone do not tell: root on a read-only disk has them all.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{option} {file}: cannot write in {folder}: {error.strerror}") from None
    try:
        os.lstat(file)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"{option} {name}: {error.strerror}") from None
    if os.path.exists(file) and not os.access(file, os.W_OK):
        raise ValueError(f"{option} {file}: the file is write-protected")


def require_picture(option: str, file: str) -> None:
    """Refuse a picture that matplotlib cannot draw, or that cannot be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"{option} needs matplotlib, which is not installed: {install('plot')}")
    from matplotlib.figure import Figure

    suffix, known = Path(file).suffix, sorted(Figure().canvas.get_supported_filetypes())
    if suffix and suffix[1:].lower() not in known:
        raise ValueError(f"{option} {file}: pictures of {suffix} cannot be drawn; use one of {', '.join(known)}")
    require_writable(option, picture_file(file))


def picture_file(file: str) -> str:
    """A name without a suffix gets matplotlib's own."""
    return f"{file}.png" if os.path.basename(file) and not Path(file).suffix and not os.path.isdir(file) else file


def write_whole(file: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Write through a temporary file in the same folder, so that no half-written one ever stands there."""
    if _is_device(file):
        write(Path(file))
        return
    path = Path(os.path.realpath(file))
    temporary = path.with_name(f".{os.urandom(6).hex()}{path.suffix}")

    def leave() -> None:
        temporary.unlink(missing_ok=True)
        end()

    with on_ctrl_c(leave):
        try:
            write(temporary)
            with undisturbed:
                temporary.replace(path)
        except OSError as error:
            if error.filename != str(temporary):
                raise
            raise type(error)(error.errno, error.strerror, str(file)) from None
        finally:
            with suppress(OSError):
                temporary.unlink()


def _is_device(file: str | os.PathLike[str]) -> bool:
    """Whether it is there, but no file that another could take the place of: /dev/null, a pipe."""
    return os.path.exists(file) and not os.path.isfile(file)
