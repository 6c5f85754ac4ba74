"""What the compiler keeps in memory and what it computes anew."""

import jax
import jax.numpy as jnp
from jax import lax


def materialize(a: jax.Array) -> jax.Array:
    """`a` itself, so that a CPU computes it once where it would compute it in every consumer.

    XLA:CPU repeats cheap arithmetic inside each fusion that reads it; an upsampling that reads winners four times then
    finds every maximum four times. It never repeats a division. So `a` is divided by 1, and the 1 is written in a way
    that only the machine-code compiler sees through, which removes the division.
    """
    return lax.div(a, _one(a))


def after(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a` itself, so that a CPU computes what follows from it only once `b` is known.

    XLA:CPU orders a program's steps by their data alone. What a kernel's gradient gathers from x, it would gather in
    the forward pass, for all layers, and keep. So `a` is multiplied by a 1 that is made of a number of `b`.
    """
    return lax.mul(a, jnp.broadcast_to(_one(lax.slice(b, (0,) * b.ndim, (1,) * b.ndim).reshape(())), a.shape))


def _one(a: jax.Array) -> jax.Array:
    """Ones that the compiler takes for numbers made of `a`: its highest bits, shifted to the lowest place and out."""
    bits = a.dtype.itemsize * 8
    unsigned = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[bits]
    number = lax.bitcast_convert_type(a, unsigned)
    highest = lax.shift_right_logical(number, jnp.full_like(number, bits - 1))
    one = lax.shift_right_logical(highest, jnp.full_like(number, 1)) + jnp.ones_like(number)
    return one.astype(a.dtype)
