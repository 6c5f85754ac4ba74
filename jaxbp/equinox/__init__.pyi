# What a type checker sees: Equinox, with the module beside this file.
from equinox import *

from . import nn as nn  # type: ignore[no-redef]
