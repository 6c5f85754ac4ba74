"""Train the digits CNN with the batch split over several devices, in one process or in several.

    python examples/data_parallel.py --devices 4                  one process, four virtual CPU devices
    python examples/data_parallel.py --devices 4 --processes 2    two processes, two devices each

With more than one process, the script starts itself that many times; the processes meet through
`jax.distributed.initialize` on 127.0.0.1. To start them by hand, for example on several machines, give every
one of them `--coordinator HOST:PORT` and its own `--process-id`.

Every device holds all parameters and its part of each batch. The loss is a mean over the whole batch, so its
gradient is a sum over devices, which the compiler takes inside the step. At the end the script checks that all
devices of all processes hold the same parameters, bit for bit, and that these equal the parameters of a run on
a single device to rounding. It exits with 1 where they do not.

It computes in float64. Adding a batch up in parts rounds differently, and training magnifies that: once a
rounding error decides which pixel wins a max pool, a float32 run drifts away by 1e-3 within a hundred steps.
In float64 the two runs stay together, so that any real difference shows.
"""

import ctrl_c  # noqa: F401  # isort: skip
import argparse
import contextlib
import functools
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import digits_cnn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxbp
from jaxbp._bench._devices import collectives
from jaxbp._interrupt import end, on_ctrl_c

LEARNING_RATE = 0.2
# The largest difference from the single-device run, relative to the largest parameter, that counts as rounding.
TOLERANCE = 1e-12


def main() -> int:
    """The exit status: 0 where all parameters agree, 1 where they do not, 2 for arguments that cannot work."""
    args = parse_arguments()
    if args.processes > 1 and args.process_id is None:
        return start_processes(args)

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", args.devices // args.processes)
    if args.processes > 1:
        jax.distributed.initialize(
            args.coordinator, args.processes, args.process_id, initialization_timeout=args.timeout
        )
    say(f"{len(jax.local_devices())} of {len(jax.devices())} devices")

    data = digits_cnn.load_digits()
    params, losses = train(mesh_of(jax.devices()), data, args)
    say(f"loss {losses[0]:.4f} in the first step, {losses[-1]:.4f} in the last of {len(losses)}")

    # One digest per device, all processes' digests gathered by all.
    digests = np.stack([digest(params, device) for device in jax.local_devices()])
    say(f"parameters {digests[0].tobytes().hex()[:16]}")
    everywhere = multihost_utils.process_allgather(digests, tiled=True)
    same = bool((everywhere == everywhere[0]).all())
    if jax.process_index() != 0:
        return 0 if same else 1

    print(f"all {len(everywhere)} devices ended with the same parameters: {'yes' if same else 'NO'}", flush=True)
    single, _ = train(mesh_of(jax.local_devices()[:1]), data, args)
    difference = relative_difference(params, single)
    equal = difference <= TOLERANCE
    print(
        f"equal to the single-device run to rounding: {'yes' if equal else 'NO'} "
        f"(largest difference {difference:.1e} of the largest parameter, limit {TOLERANCE:.0e})"
    )
    print(f"test accuracy {accuracy(params, data):.1%}")
    return 0 if same and equal else 1


def train(mesh: Mesh, data: digits_cnn.Data, args: argparse.Namespace) -> tuple[digits_cnn.Params, list[float]]:
    """Parameters after `args.steps` steps, the same on all devices of the mesh, and the loss of every step."""
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))
    initial = digits_cnn.init(jax.random.key(args.seed), data.train_images.shape[1:])
    params = jax.tree.map(lambda leaf: place(np.asarray(leaf, np.float64), everywhere), initial)
    losses = []
    for images, labels in batches(data, args):
        if not losses and mesh.size > 1:
            say(what_is_sent(params, place(images, split), place(labels, split)))
        params, loss = step(params, place(images, split), place(labels, split))
        losses.append(float(loss))
    return params, losses


@functools.partial(jax.jit, donate_argnums=0)
def step(params: digits_cnn.Params, images: jax.Array, labels: jax.Array) -> tuple[digits_cnn.Params, jax.Array]:
    """One step of gradient descent; nothing in it knows about devices."""
    loss, grads = jax.value_and_grad(digits_cnn.loss)(params, images, labels, jaxbp)
    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads), loss


def what_is_sent(params: digits_cnn.Params, images: jax.Array, labels: jax.Array) -> str:
    """What the compiled step sends: the gradients and the loss, summed over all devices."""
    sent = collectives(step.lower(params, images, labels).compile().as_text() or "")
    return f"a step sends {sum(size for _, size in sent) / 1024:.1f} KiB to each device, in {len(sent)} collectives"


def batches(data: digits_cnn.Data, args: argparse.Namespace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`args.steps` random batches, the same ones in every process."""
    random = np.random.default_rng(args.seed)
    for _ in range(args.steps):
        chosen = random.choice(len(data.train_labels), args.batch, replace=False)
        yield data.train_images[chosen].astype(np.float64), data.train_labels[chosen]


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array, of which this process supplies the parts that lie on its own devices."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def mesh_of(devices: list[Any]) -> Mesh:
    """All devices in a row."""
    return Mesh(np.array(devices), ("batch",), axis_types=(AxisType.Auto,))


def on_device(params: digits_cnn.Params, device: Any) -> list[np.ndarray]:
    """The copy of the parameters that one of this process's devices holds."""
    return [
        np.asarray(shard.data)
        for leaf in jax.tree.leaves(params)
        for shard in leaf.addressable_shards
        if shard.device == device
    ]


def digest(params: digits_cnn.Params, device: Any) -> np.ndarray:
    """The SHA-256 of one device's parameters, as 32 bytes."""
    parts = b"".join(leaf.tobytes() for leaf in on_device(params, device))
    return np.frombuffer(hashlib.sha256(parts).digest(), np.uint8)


def relative_difference(params: digits_cnn.Params, reference: digits_cnn.Params) -> float:
    """The largest difference of any two parameters, as a part of the largest parameter."""
    device = jax.local_devices()[0]
    pairs = list(zip(on_device(params, device), on_device(reference, device), strict=True))
    largest = max(float(np.abs(theirs).max()) for _, theirs in pairs)
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs) / largest


def accuracy(params: digits_cnn.Params, data: digits_cnn.Data) -> float:
    """The part of the test images that this process's copy of the parameters classifies correctly."""
    leaves = on_device(params, jax.local_devices()[0])
    local = jax.tree.unflatten(jax.tree.structure(params), leaves)
    logits = digits_cnn.apply(local, jnp.asarray(data.test_images, jnp.float64), jaxbp)
    return float(np.mean(np.argmax(np.asarray(logits), axis=-1) == data.test_labels))


def start_processes(args: argparse.Namespace) -> int:
    """Run this script once per process; the first failure, or the time limit, ends them all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--coordinator", coordinator]
    workers: list[subprocess.Popen] = []
    stop = threading.Event()
    deadline = time.monotonic() + args.timeout
    with on_ctrl_c(stop.set):
        try:
            with deaf_to_ctrl_c():
                for process_id in range(args.processes):
                    workers.append(subprocess.Popen([*command, "--process-id", str(process_id)]))
            while any(worker.poll() is None for worker in workers) and not any(worker.poll() for worker in workers):
                if stop.wait(0.05):
                    break
                if time.monotonic() > deadline:
                    print(f"data_parallel.py: not finished after {args.timeout} s, stopped", file=sys.stderr)
                    break
        finally:
            # The first of them is the one that the others talk to, and miss.
            for worker in reversed(workers):
                worker.kill()
            for worker in workers:
                worker.wait()
    if stop.is_set():
        end()
    return int(any(worker.returncode != 0 for worker in workers))


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started here do not hear Ctrl-C, which a terminal sends to all: the one that started them ends them."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def say(text: str) -> None:
    """Print a line that names the process it comes from, in one piece: processes share the terminal."""
    sys.stdout.write(f"process {jax.process_index()} of {jax.process_count()}: {text}\n")
    sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    """The command line; ends the program with status 2 where the numbers do not fit each other."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=4, metavar="N", help="devices in all processes together")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes to share the devices")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="training steps")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images per step, on all devices")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and the batches")
    parser.add_argument("--timeout", type=int, default=300, metavar="S", help="seconds, for several processes")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens; chosen if not given")
    parser.add_argument("--process-id", type=int, metavar="I", help="this process's number, from 0")
    args = parser.parse_args()
    for name in ("devices", "processes", "steps", "batch", "timeout"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more, but got {getattr(args, name)}")
    if args.devices % args.processes:
        parser.error(f"--devices {args.devices} cannot be shared evenly by --processes {args.processes}")
    if args.batch % args.devices:
        parser.error(f"--batch {args.batch} cannot be split evenly over --devices {args.devices}")
    images = len(digits_cnn.load_digits().train_labels)
    if args.batch > images:
        parser.error(f"--batch {args.batch} is more than the {images} images to learn from")
    if not 0 <= args.seed < 2**32:
        parser.error(f"--seed {args.seed} must be 0 to {2**32 - 1}")
    if (args.coordinator is None) != (args.process_id is None):
        parser.error("--coordinator and --process-id belong together: give both, or neither")
    if args.process_id is not None and not 0 <= args.process_id < args.processes:
        parser.error(f"--process-id {args.process_id} is not one of 0 to {args.processes - 1}")
    return args


if __name__ == "__main__":
    sys.exit(main())
