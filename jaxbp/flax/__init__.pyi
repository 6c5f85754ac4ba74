# What a type checker sees: Flax, with the modules beside this file.
from flax import configurations
from flax import core as core
from flax import errors as errors
from flax import ids as ids
from flax import jax_utils as jax_utils
from flax import serialization as serialization
from flax import struct as struct
from flax import traceback_util as traceback_util
from flax import traverse_util as traverse_util
from flax import typing as typing

from . import linen as linen
from . import nnx as nnx

config: configurations.Config
