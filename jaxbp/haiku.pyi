# What a type checker sees: Haiku's own classes and functions, whose signatures those of jaxbp share.
from haiku import *
from haiku import SeparableDepthwiseConv2D as SeparableDepthwiseConv2D  # pyright: ignore[reportPrivateImportUsage]
from haiku import experimental as experimental
