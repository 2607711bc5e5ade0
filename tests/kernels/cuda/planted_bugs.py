"""One-line bugs for the CUDA kernels, of the kinds that are written in earnest.

A bug is a piece of text that occurs once in a .cu file, and what takes its place.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """What is wrong, in which file, for which operation it shows, and the text before and after."""

    title: str
    source: str
    operation: str
    right: str
    wrong: str


def _in(source: str, *bugs: tuple[str, str, str, str]) -> list[Bug]:
    return [Bug(title, source, operation, right, wrong) for title, operation, right, wrong in bugs]


NMS = _in(
    "nms.cu",
    (">= for >", "nms", "- meeting) > threshold) overlaps", "- meeting) >= threshold) overlaps"),
    ("of equals the later first", "nms", "other == own && r < lane", "other == own && r > lane"),
    ("equals of other blocks count twice", "nms", "present) - (other < first) :", "present) :"),
    ("0 is better than -0", "nms", "  if (score == 0) score = 0;\n", ""),
    (
        "no barrier before the keys are read",
        "nms",
        "    __syncthreads();\n    const Key* share",
        "    const Key* share",
    ),
    ("a sum without an atomic", "nms", "atomicAdd(&ranks[lane], rank);", "ranks[lane] += rank;"),
    (
        "the last, partial tile is forgotten",
        "nms",
        "const int tiles = (n + kTile - 1) / kTile, thread = threadIdx.x;",
        "const int tiles = max(1, n / kTile), thread = threadIdx.x;",
    ),
    ("boxes are a pixel wider", "nms", "max(a.x1, b.x1), height", "max(a.x1, b.x1) + 1, height"),
    ("x for y", "nms", "min(a.y2, b.y2) -", "min(a.x2, b.y2) -"),
    ("a negative height counts", "nms", "max(width, T(0)) * height", "abs(width) * abs(height)"),
    ("a mask with the lane's own bit", "nms", "lanes_before = (1u << lane) - 1", "lanes_before = (2u << lane) - 1"),
    ("a vote of half the warp", "nms", "__ballot_sync(~0u, low)", "__ballot_sync(0xffffu, low)"),
    ("groups suppress each other", "batched_nms", "together = group == their_groups[i]", "together = true"),
    ("no barrier between tiles", "nms", "    __syncthreads();\n    found = found_at", "    found = found_at"),
    ("the other tile's bits", "nms", "kept_of_tile[(step - 1) % 2]", "kept_of_tile[step % 2]"),
    ("an OR without an atomic", "nms", "atomicOr(&removed[word], bits)", "removed[word] |= bits"),
    ("a write behind the limit", "nms", "lane & 1 && at_low < limit)", "lane & 1)"),
    ("more than the limit are reported", "batched_nms_padded", "  found = min(found, limit);\n", ""),
    (
        "results that nobody writes",
        "batched_nms_padded",
        "at < limit; at += blockDim.x) kept[at]",
        "at < 0; at++) kept[at]",
    ),
    ("the image's offset is forgotten", "batched_nms_padded", "boxes += 4 * image, groups", "groups"),
    (
        "words that aren't cleared",
        "nms",
        "word < 2 * live; word += blockDim.x) removed",
        "word < live; word += blockDim.x) removed",
    ),
)

DENSE = _in(
    "dense.cu",
    ("NaN becomes 0", "relu_forward", "x <= T(0) ? T(0) : x;", "x > T(0) ? x : T(0);"),
    (">= for > at 0", "relu_grad", "(y > T(0) ? T(1)", "(y >= T(0) ? T(1)"),
    ("the rest begins one late", "relu_forward", "rest = vectors * W + thread;", "rest = vectors * W + thread + 1;"),
    ("the rest is forgotten", "relu_forward", "if (rest < count) y[rest]", "if (rest < 0) y[rest]"),
    (
        "vectors behind the end are read",
        "relu_forward",
        "if (i < vectors) {\n        p[k] = load<W>(a",
        "if (true) {\n        p[k] = load<W>(a",
    ),
    ("the shift is scaled", "affine_forward", "return scale * x + shift;", "return scale * (x + shift);"),
    (
        "a channel too many",
        "affine_forward",
        "  if (channel >= channels) return;\n  const Vector",
        "  if (channel > channels) return;\n  const Vector",
    ),
    (
        "a stride that is too short",
        "affine_forward",
        "step = (i64)gridDim.x * blockDim.y;\n#pragma unroll 1\n  for",
        "step = 1;\n#pragma unroll 1\n  for",
    ),
    (
        "no barrier in a reduction",
        "affine_grad_parameters",
        "    __syncthreads();\n    if ((int)threadIdx.y < half)",
        "    if ((int)threadIdx.y < half)",
    ),
    ("a reduction that stops early", "affine_grad_parameters", "half > 0; half /= 2", "half > 1; half /= 2"),
    (
        "the other sum",
        "affine_grad_parameters",
        "product[channel] = (T)(total.product",
        "product[channel] = (T)(total.sum",
    ),
    (
        "no barrier before shares are added",
        "affine_grad_parameters",
        "= total;\n  __syncthreads();\n",
        "= total;\n",
    ),
    ("the mean is added", "batch_norm_forward", "(double)beta[channel] - rate *", "(double)beta[channel] + rate *"),
    ("epsilon outside the root", "batch_norm_forward", "/ sqrt(spread + epsilon)", "/ (sqrt(spread) + epsilon)"),
    (
        "the unbiased variance",
        "batch_norm_forward",
        "square = total.product / rows",
        "square = total.product / (rows - 1)",
    ),
    ("a term of the gradient is missing", "batch_norm_grad", "- of_x * (double)mean[channel]", ""),
)

POOLING = _in(
    "pooling.cu",
    ("the last of equals", "max_pool2d_forward", "!(value.at[w] <= best.at[w])", "!(value.at[w] < best.at[w])"),
    (
        "the other side's padding",
        "max_pool2d_forward",
        "* pooling.stride_x - pooling.left",
        "* pooling.stride_x - pooling.top",
    ),
    ("the last NaN", "max_pool2d_forward", " && best.at[w] == best.at[w]", ""),
    ("a maximum of at least 0", "max_pool2d_forward", "T(-1) / T(0);", "T(0);"),
    ("a row behind the image", "max_pool2d_forward", "pooling.height - top); a++", "pooling.height - top + 1); a++"),
    ("rows for columns", "max_pool2d_grad", "stride_y) * pooling.kernel_width", "stride_y) * pooling.kernel_height"),
    ("a window that ends before", "max_pool2d_grad", "return at < kernel ?", "return at <= kernel ?"),
    (
        "a window behind the last",
        "max_pool2d_grad",
        "min(x / pooling.stride_x, pooling.out_width - 1)",
        "x / pooling.stride_x",
    ),
    ("the gradient of the first window only", "max_pool2d_grad", "sum.at[w] += grad.at[w]", "sum.at[w] = grad.at[w]"),
)

RESIZE = _in(
    "resize.cu",
    (
        "a pixel behind the last",
        "resize_bilinear_forward",
        "min(max(axis.step * p + axis.offset, 0), last)",
        "max(axis.step * p + axis.offset, 0)",
    ),
    (
        "weights exchanged",
        "resize_bilinear_forward",
        "axis.denominator - sample.part : s == sample.low + 1 ? sample.part",
        "sample.part : s == sample.low + 1 ? axis.denominator - sample.part",
    ),
    ("a sample too many", "resize_nearest_grad", "min((most - 1) / axis.step", "min(most / axis.step"),
    (
        "the first sample is left out",
        "resize_bilinear_grad",
        "  if (least < 0) return 0;\n",
        "  if (least < 0) return 1;\n",
    ),
    (
        "the other array isn't added",
        "upsample_add_forward",
        "value[0][0].at[w] += present.at[w]",
        "value[0][0].at[w] += T(0)",
    ),
)

BUGS = [*NMS, *DENSE, *POOLING, *RESIZE]
