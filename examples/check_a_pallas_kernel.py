"""Find a mistake at a tile's edge in a fused Pallas kernel's gradient: RMS normalisation, before and after the repair.

    python examples/check_a_pallas_kernel.py

The kernels run in interpret mode, so that a CPU is enough. compare needs no second implementation: it runs the forward
kernel block by block in float64 and lets JAX differentiate that.
"""

import ctrl_c  # noqa: F401  # isort: skip
import argparse
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

import jaxbp

EPSILON = 1e-6
TILE = 8


def forward_kernel(x_ref, weight_ref, out_ref):
    """A tile of rows, each divided by its root mean square."""
    x = x_ref[...].astype(jnp.float32)
    inverse = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPSILON)
    out_ref[...] = (x * inverse * weight_ref[...].astype(jnp.float32)).astype(out_ref.dtype)


def backward_kernel(rows, x_ref, weight_ref, delta_ref, dx_ref, dweight_ref):
    """dx = s (w d - n mean(w d n)) with s = 1/rms, n = s x; dweight = sum of d n over the first `rows` rows."""
    x, delta = x_ref[...].astype(jnp.float32), delta_ref[...].astype(jnp.float32)
    inverse = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPSILON)
    normal, scaled = x * inverse, delta * weight_ref[...].astype(jnp.float32)
    dx_ref[...] = (inverse * (scaled - normal * (scaled * normal).mean(-1, keepdims=True))).astype(dx_ref.dtype)

    @pl.when(pl.program_id(0) == 0)
    def _():
        dweight_ref[...] = jnp.zeros_like(dweight_ref)

    # The last tile reaches over the end of x: what lies there must not be summed.
    row = pl.program_id(0) * TILE + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    dweight_ref[...] += jnp.where(row < rows, delta * normal, 0).sum(0, keepdims=True).astype(dweight_ref.dtype)


def call(kernel, tiles, inputs, outputs):
    """A kernel over tiles of rows; what has one row is the same for all tiles."""

    def spec(array):
        if array.shape[0] == 1:
            return pl.BlockSpec(array.shape, lambda i: (0, 0))
        return pl.BlockSpec((TILE, array.shape[1]), lambda i: (i, 0))

    specs = {"in_specs": [spec(a) for a in inputs], "out_specs": jax.tree.map(spec, outputs)}
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), outputs)
    return pl.pallas_call(kernel, out_shape=shapes, grid=(tiles,), interpret=True, **specs)(*inputs)


def rms_norm_with(count):
    """The fused op; `count(rows)` says how many rows its backward kernel sums over, and in how many tiles."""

    @jax.custom_vjp
    def rms_norm(x, weight):
        return call(forward_kernel, pl.cdiv(x.shape[0], TILE), (x, weight[None]), x)

    def forward(x, weight):
        return rms_norm(x, weight), (x, weight)

    def backward(kept, delta):
        x, weight = kept
        rows, tiles = count(x.shape[0])
        kernel = functools.partial(backward_kernel, rows)
        # Whole tiles: with the mistake the last one is not visited for dweight.
        dx, dweight = call(kernel, tiles, (x, weight[None], delta), (x, weight[None]))
        return dx, dweight[0]

    rms_norm.defvjp(forward, backward)
    return rms_norm


def whole_tiles(rows):
    """The mistake: rows beyond the last whole tile are left out of the sum."""
    return rows // TILE * TILE, pl.cdiv(rows, TILE)


def all_rows(rows):
    """The repair."""
    return rows, pl.cdiv(rows, TILE)


def main() -> int:
    """Compare the op with the mistake, then the repaired one, just below, at and above a tile."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    weight = 1 + 0.1 * jax.random.normal(jax.random.key(1), (16,))
    cases = [
        (jax.random.normal(jax.random.key(rows), (rows, 16)), weight) for rows in (TILE, 2 * TILE, 2 * TILE + 3, 1)
    ]

    print("1. One call whose rows fill their tiles shows nothing\n")
    quick = functools.partial(jaxbp.compare, transforms=(), probe=False, time=False, memory=False)
    alone = quick(rms_norm_with(whole_tiles), *cases[1])
    print(alone)

    print("\n\n2. The same kernel for rows just at, above and below a tile\n")
    report = quick(rms_norm_with(whole_tiles), cases=cases)
    print(report)

    print("\n\n3. After the repair\n")
    repaired = quick(rms_norm_with(all_rows), cases=cases)
    print(repaired)
    return 0 if alone.ok and repaired.ok and not report.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
