# What a type checker sees: Flax's own classes and functions, whose signatures those of jaxbp share.
from flax.nnx import *
