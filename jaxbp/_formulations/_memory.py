"""What the compiler keeps in memory and what it computes anew."""

import jax
import jax.numpy as jnp
from jax import lax


def written(a: jax.Array) -> jax.Array:
    """`a` itself, so that a CPU computes it once where it would compute it in every consumer.

    XLA:CPU repeats cheap arithmetic inside each fusion that reads it; an upsampling that reads winners four times then
    finds every maximum four times. It never repeats a division. So `a` is divided by 1, and the 1 is written in a way
    that only the machine-code compiler sees through, which removes the division: a number's highest bit, shifted to the
    lowest place and then out.
    """
    bits = a.dtype.itemsize * 8
    unsigned = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[bits]
    number = lax.bitcast_convert_type(a, unsigned)
    highest = lax.shift_right_logical(number, jnp.full_like(number, bits - 1))
    one = lax.shift_right_logical(highest, jnp.full_like(number, 1)) + jnp.ones_like(number)
    return lax.div(a, one.astype(a.dtype))
