# What a type checker sees: Flax itself, whose signatures those of jaxbp share.
from flax import configurations
from flax import core as core
from flax import errors as errors
from flax import ids as ids
from flax import jax_utils as jax_utils
from flax import nnx as nnx
from flax import serialization as serialization
from flax import struct as struct
from flax import traceback_util as traceback_util
from flax import training as training
from flax import traverse_util as traverse_util
from flax import typing as typing

from . import linen as linen

config: configurations.Config
