"""Find a mistake in a hand-written gradient of your own: layer normalisation, before and after the repair.

    python examples/check_your_own_rule.py [--plot FILE.png]

The function is no part of jaxbp: compare takes any function with a jax.custom_vjp rule.
"""

import ctrl_c  # noqa: F401  # isort: skip
import argparse
import sys

import jax

import jaxbp
from jaxbp._output import picture_file, require_picture, write_whole

EPSILON = 1e-5


def layer_norm(x, gain, shift):
    """Each row of x with mean 0 and variance 1, then scaled and shifted."""
    mean = x.mean(-1, keepdims=True)
    variance = x.var(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + EPSILON) * gain + shift


def forward(x, gain, shift):
    inverse = jax.lax.rsqrt(x.var(-1, keepdims=True) + EPSILON)
    normal = (x - x.mean(-1, keepdims=True)) * inverse
    return normal * gain + shift, (normal, inverse, gain)


def backward_with_mistake(kept, delta):
    """The gradient flows through the mean, but its way through the variance was forgotten."""
    normal, inverse, gain = kept
    scaled = delta * gain
    dx = inverse * (scaled - scaled.mean(-1, keepdims=True))
    return dx, (delta * normal).sum(0), delta.mean(0)


def backward(kept, delta):
    """dx = (g - mean(g) - n mean(g n)) / sigma with g = delta gain and n the normalised row."""
    normal, inverse, gain = kept
    scaled = delta * gain
    along = (scaled * normal).mean(-1, keepdims=True)
    dx = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    return dx, (delta * normal).sum(0), delta.sum(0)


def main() -> int:
    """Compare the rule with the mistake, then the repaired one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plot", metavar="FILE.png", help="draw the wrong gradient next to the right one")
    options = parser.parse_args()
    if options.plot is not None:
        try:
            require_picture("--plot", options.plot)
        except ValueError as error:
            print(f"check_your_own_rule: {error}", file=sys.stderr)
            return 2
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (32, 64))
    gain = 1 + 0.1 * jax.random.normal(keys[1], (64,))
    shift = 0.1 * jax.random.normal(keys[2], (64,))

    print("1. A rule with two mistakes\n")
    wrong = jax.custom_vjp(layer_norm)
    wrong.defvjp(forward, backward_with_mistake)
    report = jaxbp.compare(wrong, x, gain, shift, time=False)
    print(report)
    if options.plot:
        write_whole(picture_file(options.plot), report.plot("x").savefig)
        print(f"\nwrote {picture_file(options.plot)}")

    print("\n\n2. The same after the repair\n")
    right = jax.custom_vjp(layer_norm)
    right.defvjp(forward, backward)
    repaired = jaxbp.compare(right, x, gain, shift)
    print(repaired)

    print("\n\n3. In a test suite this is one line, silent when the rule is right:\n")
    print("    jaxbp.check_vjp(layer_norm, x, gain, shift)")
    jaxbp.check_vjp(right, x, gain, shift)
    return 0 if repaired.ok and not report.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
