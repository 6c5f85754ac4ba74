# What a type checker sees: Flax's own classes and functions, whose signatures those of jaxbp share, and its modules.
from flax.linen import *
from flax.linen import activation as activation
from flax.linen import attention as attention
from flax.linen import batch_apply as batch_apply
from flax.linen import combinators as combinators
from flax.linen import dtypes as dtypes
from flax.linen import fp8_ops as fp8_ops
from flax.linen import initializers as initializers
from flax.linen import kw_only_dataclasses as kw_only_dataclasses
from flax.linen import linear as linear
from flax.linen import module as module
from flax.linen import normalization as normalization
from flax.linen import partitioning as partitioning
from flax.linen import pooling as pooling
from flax.linen import recurrent as recurrent
from flax.linen import spmd as spmd
from flax.linen import stochastic as stochastic
from flax.linen import summary as summary
from flax.linen import transforms as transforms
from flax.linen.pooling import min_pool as min_pool
