"""What XLA:CPU keeps in memory and what it computes anew."""

import jax
import jax.numpy as jnp
from jax import lax


def materialize(a: jax.Array) -> jax.Array:
    """`a`, computed once and stored. XLA:CPU would otherwise compute it again in every fusion that reads it.

    XLA:CPU repeats cheap arithmetic in each consumer: an upsampling that reads the winners four times would find every
    maximum four times. It never repeats a division. So `a` is divided by a 1 that XLA does not recognize. LLVM
    recognizes it, and removes the division.
    """
    return lax.div(a, _one(a))


def after(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a`, available only after `b`: what follows from it is not computed earlier.

    XLA:CPU orders a program by its data dependences alone. What a kernel's gradient gathers from x would be gathered in
    the forward pass, for all layers, and kept. So `a` is multiplied by a 1 that is made of an element of `b`.
    """
    if 0 in b.shape:
        return a
    one = _one(lax.slice(b, (0,) * b.ndim, (1,) * b.ndim).reshape(()))
    return lax.mul(a, jnp.broadcast_to(one.astype(a.dtype), a.shape))


def _one(a: jax.Array) -> jax.Array:
    """Ones that XLA takes for values that depend on `a`: its highest bits, shifted out, plus 1."""
    bits = a.dtype.itemsize * 8
    unsigned = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[bits]
    number = lax.bitcast_convert_type(a, unsigned)
    highest = lax.shift_right_logical(number, jnp.full_like(number, bits - 1))
    one = lax.shift_right_logical(highest, jnp.full_like(number, 1)) + jnp.ones_like(number)
    return one.astype(a.dtype)
