# What a type checker sees: Equinox itself, whose signatures those of jaxbp share.
from equinox import *
