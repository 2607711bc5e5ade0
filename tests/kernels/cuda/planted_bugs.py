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
        "product[channel] = (T)total.product;",
        "product[channel] = (T)total.sum;",
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

CONVOLUTION = _in(
    "conv2d.cu",
    (
        "the padding's sign",
        "conv2d_forward",
        "axis.stride, -axis.padding, axis.dilation",
        "axis.stride, axis.padding, axis.dilation",
    ),
    (
        "stride for dilation",
        "conv2d_forward",
        "axis.input, axis.stride, -axis.padding, axis.dilation,",
        "axis.input, axis.dilation, -axis.padding, axis.stride,",
    ),
    (
        "the residue without the padding",
        "conv2d_grad_input",
        "(residue + axis.padding - d * first) % s",
        "(residue - d * first) % s",
    ),
    (
        "the pixels of a residue rounded down",
        "conv2d_grad_input",
        "(axis.input - residue + s - 1) / s",
        "(axis.input - residue) / s",
    ),
    ("a carry that comes late", "conv2d_forward", "if (middle >= middle_radix)", "if (middle > middle_radix)"),
    (
        "a row below the image",
        "conv2d_forward",
        "(u32)(y[i] + down) < (u32)height",
        "(u32)(y[i] + down) <= (u32)height",
    ),
    ("a comparison of signed numbers", "conv2d_grad_weight", "&& (u32)y < (u32)rows.source", "&& y < rows.source"),
    (
        "images that don't exist",
        "conv2d_forward",
        "const bool exists = place.high < images;",
        "const bool exists = true;",
    ),
    ("the last slice's lines", "conv2d_forward", "from + ahead, left > 0 && ahead", "from + ahead, ahead"),
    (
        "a pitch that isn't the matrix's",
        "conv2d_grad_weight",
        "from += (i64)Layout::LINES * pitch;",
        "from += (i64)Layout::LINES * width;",
    ),
    ("sums that don't start at 0", "conv2d_forward", "sums[i][j] = 0;", "sums[i][j] += 0;"),
    ("a difference for a sum", "conv2d_forward", "sums[i][j] += x *", "sums[i][j] -= x *"),
    ("copies that aren't waited for", "conv2d_forward", "copy_wait<STAGES - 2>();", "copy_wait<STAGES - 1>();"),
    (
        "no barrier in the pipeline",
        "conv2d_forward",
        "    __syncthreads();  // the slice is there",
        "    // the slice is there",
    ),
    (
        "the stage that is being read is written",
        "conv2d_forward",
        "a.copy(stages + writing * SIZE);",
        "a.copy(stages + reading * SIZE);",
    ),
    ("a copy that isn't committed", "conv2d_forward", "    copy_commit();  // an empty", "    // an empty"),
    (
        "the residual of another pixel",
        "conv2d_fused_forward",
        "value += residual[element];",
        "value += residual[channel];",
    ),
    (
        "the shift is applied first",
        "conv2d_fused_forward",
        "if (steps & SCALE) value *= scale[channel];",
        "if (steps & SCALE) value *= scale[0];",
    ),
    (
        "vectors that aren't aligned",
        "conv2d_forward",
        "  const bool aligned = width % Atom::RUN == 0;",
        "  const bool aligned = true;",
    ),
    (
        "columns that don't exist",
        "conv2d_forward",
        "    for (int j = 0; j < RUN; j++)\n      if (column + j < width) y[element + j]",
        "    for (int j = 0; j < RUN; j++)\n      if (column < width) y[element + j]",
    ),
    (
        "no barrier behind the walks",
        "conv2d_forward",
        "  }\n  __syncthreads();\n  const int first_row",
        "  }\n  const int first_row",
    ),
    ("every group reads the first's channels", "conv2d_forward", "a(image + group * channels, rows", "a(image, rows"),
    (
        "every group has the first's weights",
        "conv2d_forward",
        "(i64)first_line * pitch + group * task.columns",
        "(i64)first_line * pitch",
    ),
    ("pixels that don't exist are written", "conv2d_forward", "    if (pixel >= pixels) return;\n", ""),
    ("rows that don't exist are written", "conv2d_grad_weight", "    if (row >= height) return;\n", ""),
    (
        "parts of a sum start at its second",
        "conv2d_grad_weight",
        "for (int part = 1; part < splits; part++)",
        "for (int part = 2; part < splits; part++)",
    ),
    (
        "no barrier before weights are packed",
        "conv2d_grad_input",
        "  __syncthreads();\n  int slot = tap;",
        "  int slot = tap;",
    ),
    ("weights transposed", "conv2d_forward", "rounded<Packed>(tile[c][o])", "rounded<Packed>(tile[o][c])"),
    ("taps in forward order", "conv2d_grad_input", "(rows.count - 1 - a / conv.y.period)", "(a / conv.y.period)"),
)

LOSSES = _in(
    "losses.cu",
    (
        "an exponential that overflows",
        "binary_cross_entropy_forward",
        "exponential(logit > 0 ? -logit : logit)",
        "exponential(-logit)",
    ),
    ("the target's sign", "binary_cross_entropy_forward", "- logit * target +", "+ logit * target +"),
    ("the square isn't halved", "smooth_l1_forward", "near * steepness / 2", "near * steepness"),
    ("the slope's sign", "smooth_l1_forward", "difference < 0 ? -steepness : steepness}", "steepness}"),
    (
        "a shuffle too few",
        "softmax_forward",
        "for (int step = 16; step; step /= 2) total",
        "for (int step = 8; step; step /= 2) total",
    ),
    (
        "a shuffle of half the warp",
        "softmax_forward",
        "__shfl_xor_sync(~0u, total, step)",
        "__shfl_xor_sync(0xffffu, total, step)",
    ),
    (
        "lanes that start at 0",
        "softmax_forward",
        "k = lane; k < length; k += 32) total",
        "k = 0; k < length; k += 32) total",
    ),
    (
        "a row too many",
        "cross_entropy_forward",
        "  if (row >= rows) return;\n  logits +=",
        "  if (row > rows) return;\n  logits +=",
    ),
    (
        "the loss of every lane",
        "cross_entropy_forward",
        "  if (lane == 0) {\n    const bool exists",
        "  {\n    const bool exists",
    ),
)

REGIONS = _in(
    "roi.cu",
    (
        "the slope at an integer",
        "roi_align_grad_boxes",
        "T(T(pixel) == ceil(position))",
        "T(T(pixel) == floor(position) + 1)",
    ),
    (
        "the line of another image width",
        "roi_align_forward",
        "((i64)(top + i) * columns.length + left)",
        "((i64)(top + i) * rows.length + left)",
    ),
    (
        "rows for columns",
        "roi_align_forward",
        "stop = min(first + length, sampling.columns);",
        "stop = min(first + length, sampling.rows);",
    ),
    (
        "no barrier before the warps' sums are added",
        "roi_align_grad_boxes",
        "  __syncthreads();\n  if (warp || lane",
        "  if (warp || lane",
    ),
    (
        "no barrier before weights are used",
        "crop_and_resize_grad_images",
        "      __syncthreads();\n\n      for (int i = 0; i < present",
        "      for (int i = 0; i < present",
    ),
    (
        "rows of strips for columns",
        "crop_and_resize_grad_images",
        "row = warp / strips, column = warp % strips",
        "row = warp % strips, column = warp / strips",
    ),
    (
        "rows below the image are written",
        "roi_align_grad_features",
        "channel >= vectors || y >= sampling.height",
        "channel >= vectors",
    ),
    ("regions of all images", "roi_align_grad_features", " && image_index[candidate] == own.image;", ";"),
    (
        "the last bin that touches",
        "roi_align_grad_features",
        "bin - lane + 32 - __clz(votes)",
        "bin - lane + 31 - __clz(votes)",
    ),
    ("the lower edge's share", "roi_align_grad_boxes", "(start - extent) * scale", "start * scale"),
    ("what is outside the image", "crop_and_resize_forward", "? outside : not_a_number", "? T(0) : not_a_number"),
)

SAMPLING = _in(
    "sampling.cuh",
    (
        "a coordinate in another order",
        "crop_and_resize_forward",
        "low * axis.scale : T(0.5) * (low + high) * axis.scale;",
        "low * axis.scale : (low + high) * axis.scale;",
    ),
    (
        "the border itself is outside",
        "crop_and_resize_forward",
        "s <= T(length - 1 + margin)",
        "s < T(length - 1 + margin)",
    ),
    (
        "samples are moved to one pixel too few",
        "roi_align_forward",
        "min(max(s, T(0)), T(length - 1))",
        "min(max(s, T(0)), T(length - 2))",
    ),
    (
        "samples at the beginning of their share",
        "roi_align_forward",
        "divide((T(sample) + T(0.5)) * step",
        "divide(T(sample) * step",
    ),
    (
        "boxes below a pixel aren't widened",
        "roi_align_forward",
        "if (!sampling.aligned) extent = max(extent, T(1));",
        "",
    ),
    ("half a pixel for all", "roi_align_forward", "sampling.aligned ? T(0.5) : T(0);", "T(0.5);"),
    ("x for y", "roi_align_forward", "box[rows ? 1 : 0]", "box[rows ? 0 : 1]"),
    ("one step too many", "crop_and_resize_forward", "crop ? max(axis.bins - 1, 1) : axis.bins", "axis.bins"),
    ("the last pixel of a bin", "roi_align_forward", "(int)ceil(max(one, other)) + 1}", "(int)ceil(max(one, other))}"),
    (
        "the first pixel of a bin",
        "crop_and_resize_forward",
        "(int)floor(min(one, other))",
        "(int)ceil(min(one, other))",
    ),
    (
        "a sum for a mean",
        "roi_align_forward",
        "sum.at[k] = divide(sum.at[k], divisor, reciprocal)",
        "sum.at[k] = sum.at[k]",
    ),
    (
        "boxes that run backwards reach nothing",
        "crop_and_resize_grad_images",
        "max(one, other) >= T(low - 1) && min(one, other)",
        "other >= T(low - 1) && one",
    ),
)

TILES = _in(
    "tiles.cuh",
    ("no barrier before the counts are read", "roi_pool_grad", "__popc(votes);\n  __syncthreads();", "__popc(votes);"),
    ("all warps write to the same place", "roi_pool_grad", "if (i < warp) before += counts[i];", ""),
    ("a lane counts itself", "roi_pool_grad", "((1u << lane) - 1))] = item", "((2u << lane) - 1))] = item"),
    ("no barrier before the list is read", "roi_pool_grad", "= item;\n  __syncthreads();", "= item;"),
)

ROI_POOL = _in(
    "roi_pool.cu",
    ("halves to even", "roi_pool_forward", "{ return roundf(x); }", "{ return rintf(x); }"),
    ("a box a pixel narrower", "roi_pool_forward", "max(last - start + T(1), T(1))", "max(last - start, T(1))"),
    ("the last of equals", "roi_pool_forward", "value > greatest ||", "value >= greatest ||"),
    ("the source counts columns", "roi_pool_forward", "place = y * width + x;", "place = y * height + x;"),
    (
        "a bin too many",
        "roi_pool_forward",
        "number >= (u32)regions * rows * columns",
        "number > (u32)regions * rows * columns",
    ),
    ("a tile's last row", "roi_pool_grad", "at.w >= own.top;", "at.w > own.top;"),
    (
        "a bin before that overwrites",
        "roi_pool_grad",
        "[thread] += grad_output[element]",
        "[thread] = grad_output[element]",
    ),
    ("a column behind the image", "roi_pool_grad", "columns = min(tile, width - own.left)", "columns = tile"),
)

MATCHING = _in(
    "matching.cu",
    ("of equal objects the last", "match_boxes", "if (overlap > largest)", "if (overlap >= largest)"),
    ("boxes are a pixel wider", "match_boxes", "max(a.x1, b.x1), height", "max(a.x1, b.x1) + 1, height"),
    (
        "no barrier before objects are replaced",
        "match_boxes",
        "    __syncthreads();\n    if (thread < count) {",
        "    if (thread < count) {",
    ),
    (
        "a maximum without an atomic",
        "match_boxes",
        "atomicMax(&tops[g], bits_of(overlap));",
        "tops[g] = max(tops[g], bits_of(overlap));",
    ),
    ("an object that nothing meets has a best box", "match_boxes", "if (top == 0 || top > bar)", "if (top > bar)"),
    ("of equal boxes the last", "match_boxes", "atomicMin(&first[g], row)", "first[g] = row"),
    (
        "only the first block's maximum",
        "match_boxes",
        "if (thread < count && tops[thread])",
        "if (blockIdx.x == 0 && thread < count)",
    ),
)

BUGS = [*NMS, *DENSE, *POOLING, *RESIZE, *CONVOLUTION, *LOSSES, *REGIONS, *SAMPLING, *TILES, *ROI_POOL, *MATCHING]
