"""Docstrings as the site's generator reads them: an "Example:" is code."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Google's style knows "Examples:" alone."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
