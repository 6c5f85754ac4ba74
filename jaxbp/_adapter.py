"""What the adapters share: the error for a library that is not installed, and the names that they show."""

from collections.abc import Iterable
from types import ModuleType


def not_installed(needs: str, library: str, extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The error that names the extra to install; the original one where something else than the library is missing."""
    if error.name != library:
        return error
    text = f"{needs} needs {library}, which is not installed: {install(extra)}"
    return ModuleNotFoundError(text, name=library)


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'jaxbp[{extra}]'"


def other_names(library: ModuleType, own: Iterable[str]) -> list[str]:
    """The library's public names that are not the adapter's own: `dir` shows both, and a star imports both."""
    theirs = getattr(library, "__all__", None) or [name for name in vars(library) if not name.startswith("_")]
    return sorted({*theirs} - {*own})
