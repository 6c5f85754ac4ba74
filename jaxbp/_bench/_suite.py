"""The named cases: layers of known networks, and the corners that the automatic rule handles badly.

A case is small enough for the automatic rule to take about 0.3 s at most on two cores, so that the suite takes minutes.
"""

import math
from typing import Any, NamedTuple

Shape = tuple[int, ...]


class Case(NamedTuple):
    """One call of an op: `op(*arrays, *arguments, **keywords)`, with random arrays of the given shapes."""

    name: str
    family: str
    op: str
    shapes: tuple[Shape, ...]
    arguments: tuple = ()
    keywords: dict[str, Any] = {}  # noqa: RUF012  (never written to)

    @property
    def pools(self) -> bool:
        """Whether it is a pool and not a convolution."""
        return self.op.endswith("pool")

    def enlarged(self, times: int) -> "Case":
        """The same layer of so many times as many images."""
        x, *others = self.shapes
        larger = (times * x[0], *x[1:])
        return self._replace(name=self.name.replace(_x(x), _x(larger)), shapes=(larger, *others))


def _x(shape: Shape) -> str:
    """(8, 28, 28, 64) as 8x28x28x64."""
    return "x".join(map(str, shape))


def conv_case(
    network: str, family: str, x: Shape, kernel: Shape, strides: int = 1, bias: bool = False, **keywords
) -> Case:
    """A convolution; its name says the window, the stride and the shapes."""
    step = f"/{strides}" if strides > 1 else ""
    dilation = keywords.get("kernel_dilation", 1)
    spread = f" dilated {dilation}" if dilation > 1 else ""
    groups = keywords.get("feature_group_count", 1)
    grouped = f" {groups} groups" if 1 < groups < x[-1] else ""
    name = f"{network} {_x(kernel[:-2])}{step}{spread}{grouped} {_x(x)}->{kernel[-1]}"
    shapes = (x, kernel, kernel[-1:]) if bias else (x, kernel)
    return Case(name, family, "conv", shapes, (), {"strides": strides, **keywords})


def _depthwise(
    network: str, x: Shape, window: Shape, strides: int = 1, multiplier: int = 1, bias: bool = False
) -> Case:
    """A convolution of every channel for itself."""
    channels = x[-1]
    kernel = (*window, 1, channels * multiplier)
    padding = tuple((k // 2, k // 2) for k in window)
    return conv_case(network, "depthwise", x, kernel, strides, bias, padding=padding, feature_group_count=channels)


def transposed_case(network: str, x: Shape, kernel: Shape, strides: int, padding: str = "SAME") -> Case:
    """A transposed convolution."""
    rank = len(kernel) - 2
    name = f"{network} {rank}-D transposed {_x(kernel[:-2])}/{strides} {_x(x)}->{kernel[-1]}"
    return Case(name, "transposed", "conv_transpose", (x, kernel), ((strides,) * rank, padding))


def pool_case(
    op: str, network: str, x: Shape, window: Shape, strides: int = 1, padding: str = "VALID", **keywords
) -> Case:
    """A pool."""
    kind = {"max_pool": "max pool", "avg_pool": "average pool"}[op]
    word = "" if padding == "VALID" else f" {padding}"
    name = f"{network} {kind} {_x(window)}/{strides}{word} {_x(x)}"
    return Case(name, kind, op, (x,), (window, (strides,) * len(window), padding), keywords)


CASES: tuple[Case, ...] = (
    conv_case("lenet", "dense", (64, 28, 28, 1), (5, 5, 1, 6), bias=True),
    conv_case("lenet", "dense", (64, 14, 14, 6), (5, 5, 6, 16), bias=True, padding="VALID"),
    conv_case("lenet", "dense", (64, 5, 5, 16), (5, 5, 16, 120), bias=True, padding="VALID"),
    conv_case("lenet", "dense", (1, 28, 28, 1), (5, 5, 1, 6), bias=True),
    conv_case("vgg", "dense", (2, 224, 224, 3), (3, 3, 3, 64), bias=True),
    conv_case("vgg", "dense", (8, 56, 56, 64), (3, 3, 64, 64), bias=True),
    conv_case("vgg", "dense", (1, 56, 56, 128), (3, 3, 128, 128), bias=True),
    conv_case("resnet stem", "dense", (8, 224, 224, 3), (7, 7, 3, 64), 2, padding=3),
    conv_case("resnet stem", "dense", (1, 224, 224, 3), (7, 7, 3, 64), 2, padding=3),
    conv_case("resnet", "dense", (8, 28, 28, 128), (3, 3, 128, 128)),
    conv_case("resnet", "dense", (8, 14, 14, 256), (3, 3, 256, 256)),
    conv_case("resnet", "dense", (1, 14, 14, 256), (3, 3, 256, 256)),
    conv_case("resnet", "dense", (8, 7, 7, 512), (3, 3, 512, 512)),
    conv_case("resnet", "dense", (64, 32, 32, 3), (3, 3, 3, 32)),
    conv_case("resnet", "dense", (64, 16, 16, 32), (3, 3, 32, 32)),
    conv_case("resnet", "dense", (64, 8, 8, 64), (3, 3, 64, 64)),
    conv_case("resnet", "dense", (8, 56, 56, 64), (3, 3, 64, 128), 2, padding=1),
    conv_case("resnet", "dense", (8, 28, 28, 128), (3, 3, 128, 256), 2, padding=1),
    conv_case("resnet", "dense", (64, 16, 16, 32), (3, 3, 32, 64), 2, padding=1),
    conv_case("densenet", "dense", (1, 56, 56, 128), (3, 3, 128, 32)),
    conv_case("srcnn", "dense", (8, 64, 64, 32), (5, 5, 32, 1)),
    conv_case("discriminator", "dense", (64, 4, 4, 128), (4, 4, 128, 1), padding="VALID"),
    conv_case("unet first", "few channels", (1, 256, 256, 3), (3, 3, 3, 16)),
    conv_case("digits", "few channels", (64, 28, 28, 1), (7, 7, 1, 16)),
    conv_case("digits", "few channels", (1, 28, 28, 1), (5, 5, 1, 8)),
    conv_case("ecg", "few channels", (16, 1000, 2), (25, 2, 16)),
    conv_case("resnet", "1x1", (8, 28, 28, 256), (1, 1, 256, 64)),
    conv_case("resnet", "1x1", (8, 56, 56, 64), (1, 1, 64, 256)),
    conv_case("resnet", "1x1", (1, 28, 28, 256), (1, 1, 256, 64)),
    conv_case("mobilenet", "1x1", (64, 14, 14, 64), (1, 1, 64, 384)),
    conv_case("resnet", "1x1", (8, 56, 56, 64), (1, 1, 64, 128), 2),
    conv_case("resnet", "1x1", (8, 28, 28, 256), (1, 1, 256, 512), 2),
    _depthwise("mobilenet depthwise", (8, 56, 56, 64), (3, 3)),
    _depthwise("mobilenet depthwise", (64, 14, 14, 96), (3, 3)),
    _depthwise("mobilenet depthwise", (1, 56, 56, 144), (3, 3)),
    _depthwise("mobilenet depthwise", (8, 56, 56, 64), (3, 3), 2),
    _depthwise("mobilenet depthwise", (1, 28, 28, 32), (3, 3), multiplier=2),
    _depthwise("efficientnet depthwise", (8, 14, 14, 240), (5, 5)),
    _depthwise("efficientnet depthwise", (8, 28, 28, 96), (5, 5), 2),
    _depthwise("convnext depthwise", (4, 14, 14, 384), (7, 7), bias=True),
    _depthwise("convnext depthwise", (1, 56, 56, 96), (7, 7), bias=True),
    _depthwise("convmixer depthwise", (1, 32, 32, 256), (9, 9)),
    _depthwise("replknet depthwise", (1, 28, 28, 128), (13, 13)),
    _depthwise("conformer depthwise", (8, 256, 128), (31,)),
    conv_case("resnext", "grouped", (2, 14, 14, 128), (3, 3, 4, 128), feature_group_count=32),
    conv_case("resnext", "grouped", (1, 14, 14, 256), (3, 3, 8, 256), feature_group_count=32),
    conv_case("resnext", "grouped", (1, 28, 28, 128), (3, 3, 4, 128), 2, padding=1, feature_group_count=32),
    conv_case("resnext", "grouped", (64, 8, 8, 64), (3, 3, 16, 64), feature_group_count=4),
    conv_case("deeplab", "dilated", (4, 28, 28, 128), (3, 3, 128, 128), kernel_dilation=2),
    conv_case("deeplab", "dilated", (1, 33, 33, 256), (3, 3, 256, 256), kernel_dilation=12),
    conv_case("wavenet", "dilated", (4, 4096, 64), (2, 64, 64), kernel_dilation=128, padding=((128, 0),)),
    conv_case("tcn", "dilated", (64, 256, 32), (3, 32, 32), kernel_dilation=8),
    conv_case("vit patch", "patch", (4, 224, 224, 3), (16, 16, 3, 192), 16, True),
    conv_case("vit patch", "patch", (1, 224, 224, 3), (16, 16, 3, 768), 16, True),
    conv_case("convnext patch", "patch", (8, 224, 224, 3), (4, 4, 3, 96), 4, True),
    conv_case("convnext patch", "patch", (8, 56, 56, 96), (2, 2, 96, 192), 2, True),
    transposed_case("vocoder", (2, 512, 128), (16, 128, 64), 8),
    transposed_case("wave-u-net", (8, 1024, 64), (4, 64, 32), 2),
    transposed_case("dcgan", (4, 14, 14, 128), (4, 4, 128, 64), 2),
    transposed_case("dcgan", (64, 8, 8, 64), (4, 4, 64, 32), 2),
    transposed_case("autoencoder", (8, 28, 28, 64), (3, 3, 64, 32), 2),
    transposed_case("u-net", (2, 28, 28, 128), (2, 2, 128, 64), 2, "VALID"),
    transposed_case("u-net", (1, 8, 12, 12, 64), (2, 2, 2, 64, 32), 2, "VALID"),
    transposed_case("voxels", (1, 8, 8, 8, 32), (4, 4, 4, 32, 16), 2),
    conv_case("audio", "1-D", (4, 8192, 32), (7, 32, 32)),
    conv_case("audio", "1-D", (4, 16000, 1), (10, 1, 64), 5, padding="VALID"),
    conv_case("whisper", "1-D", (1, 3000, 80), (3, 80, 384), bias=True),
    conv_case("text", "1-D", (64, 128, 128), (3, 128, 128)),
    conv_case("video", "3-D", (1, 16, 32, 32, 16), (3, 3, 3, 16, 16)),
    conv_case("video", "3-D", (1, 8, 56, 56, 3), (3, 3, 3, 3, 32)),
    conv_case("video", "3-D", (1, 8, 28, 28, 32), (3, 3, 3, 32, 64), 2, padding=1),
    conv_case("video", "3-D", (64, 4, 8, 8, 16), (3, 3, 3, 16, 16)),
    pool_case("max_pool", "lenet", (64, 28, 28, 6), (2, 2), 2),
    pool_case("max_pool", "vgg", (8, 112, 112, 64), (2, 2), 2),
    pool_case("max_pool", "vgg", (1, 112, 112, 128), (2, 2), 2),
    pool_case("max_pool", "cifar", (64, 32, 32, 32), (2, 2), 2),
    pool_case("max_pool", "odd", (8, 57, 57, 64), (2, 2), 2),
    pool_case("max_pool", "resnet", (4, 112, 112, 64), (3, 3), 2, "SAME"),
    pool_case("max_pool", "alexnet", (8, 55, 55, 96), (3, 3), 2),
    pool_case("max_pool", "inception", (16, 28, 28, 64), (3, 3), 1, "SAME"),
    pool_case("max_pool", "inception", (1, 28, 28, 256), (3, 3), 1, "SAME"),
    pool_case("max_pool", "yolo", (1, 20, 20, 256), (5, 5), 1, "SAME"),
    pool_case("max_pool", "yolo", (1, 13, 13, 512), (13, 13), 1, "SAME"),
    pool_case("max_pool", "yolo", (2, 26, 26, 64), (13, 13), 1, "SAME"),
    pool_case("max_pool", "audio", (64, 1024, 32), (2,), 2),
    pool_case("max_pool", "audio", (16, 4096, 32), (3,), 2, "SAME"),
    pool_case("max_pool", "video", (2, 16, 56, 56, 32), (2, 2, 2), 2),
    pool_case("max_pool", "video", (1, 16, 56, 56, 32), (3, 3, 3), 2, "SAME"),
    pool_case("avg_pool", "lenet", (64, 28, 28, 6), (2, 2), 2),
    pool_case("avg_pool", "densenet", (8, 56, 56, 128), (2, 2), 2),
    pool_case("avg_pool", "odd", (8, 57, 57, 64), (3, 3), 2),
    pool_case("avg_pool", "inception", (16, 28, 28, 64), (3, 3), 1, "SAME", count_include_pad=False),
    pool_case("avg_pool", "inception", (1, 28, 28, 256), (3, 3), 1, "SAME"),
    pool_case("avg_pool", "cifar", (64, 32, 32, 32), (8, 8), 8),
    pool_case("avg_pool", "global", (64, 8, 8, 256), (8, 8), 1),
    pool_case("avg_pool", "global", (1, 7, 7, 2048), (7, 7), 1),
    pool_case("avg_pool", "smoothing", (8, 28, 28, 64), (13, 13), 1, "SAME"),
    pool_case("avg_pool", "audio", (16, 4096, 32), (4,), 4),
    pool_case("avg_pool", "audio", (8, 1024, 64), (3,), 2, "SAME"),
    pool_case("avg_pool", "video", (2, 16, 56, 56, 32), (2, 2, 2), 2),
    pool_case("avg_pool", "video", (1, 8, 28, 28, 64), (3, 3, 3), 1, "SAME"),
)


def operations(case: Case, output: Shape) -> int:
    """Additions and multiplications of the forward pass and all gradients, the bias's left out."""
    x, *kernel = case.shapes
    if case.pools:
        return 2 * math.prod(output) * math.prod(case.arguments[0])
    *window, group_channels, features = kernel[0]
    if case.op == "conv_transpose":
        return 6 * math.prod(x) * math.prod(window) * features
    return 6 * math.prod(output) * math.prod(window) * group_channels


def traffic(case: Case, output: Shape, itemsize: int) -> int:
    """Bytes that must be read and written at least: every array and its gradient once."""
    return 2 * itemsize * (math.prod(output) + sum(map(math.prod, case.shapes)))
