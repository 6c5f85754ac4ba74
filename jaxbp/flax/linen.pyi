# What a type checker sees: Flax's own classes and functions, whose signatures those of jaxbp share.
from flax.linen import *
from flax.linen.pooling import min_pool as min_pool
