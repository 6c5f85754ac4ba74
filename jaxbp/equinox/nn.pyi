# What a type checker sees: Equinox's own classes, whose signatures those of jaxbp share.
from equinox.nn import *
