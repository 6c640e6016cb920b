"""The kernels themselves. Imported at first use, as it imports Triton."""

# branches that constants choose are not compiled, and Triton's own types are not Python's
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def gelu(x):
    """``x Phi(x)`` as ``max(x, 0) - |x| Phi(-|x|)``, so that large values are exact.

    Phi(-a) = exp(-a^2 / 2) P(1 / (1 + 0.3765 a)), P a minimax fit to erfcx(a / sqrt(2)) / 2 of a relative error of 3e-5
    for all a >= 0: CUDA's error function costs as much as both products of a narrow MLP.
    """
    a = tl.abs(x)
    t = 1.0 / (a * 0.37648504003285216 + 1.0)
    p = t * -0.09096415162131981 + 0.19800803705527878
    p = t * p + 0.08525861833582758
    p = t * p + 0.15800400551651797
    p = t * p + 0.14967936210045157
    return tl.maximum(x, 0.0) - a * t * p * tl.exp2(a * a * -0.7213475204444817)


@triton.jit
def gelu_tanh(x):
    """0.5 (1 + tanh(z)) = sigmoid(2 z)."""
    return x * tl.sigmoid(x * (1.5957691216057308 + 0.07135481282670546 * x * x))


@triton.jit
def _normed(x, mean, inverse, SCALE, SHIFT, channel, AFFINE: tl.constexpr):
    normed = (x - mean[:, None]) * inverse[:, None]
    if AFFINE:
        normed = normed * tl.load(SCALE + channel).to(tl.float32)[None, :]
        normed += tl.load(SHIFT + channel).to(tl.float32)[None, :]
    return normed


@triton.jit
def channel_mlp(
    X,
    RESIDUAL,
    OUT,
    SCALE,
    SHIFT,
    WEIGHT1,
    BIAS1,
    WEIGHT2,
    BIAS2,
    unit_stride1,
    channel_stride1,
    unit_stride2,
    channel_stride2,
    rows,
    eps,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    NORM: tl.constexpr,
    AFFINE: tl.constexpr,
    OWN_RESIDUAL: tl.constexpr,
    TANH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """``residual + fc2(gelu(fc1(norm(x))))`` of BLOCK_ROWS rows; weights of any order.

    Widths that are no power of two are two that are, FIRST + SECOND: 96 = 64 + 32. SECOND may be 0.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = (row < rows)[:, None]
    first = tl.arange(0, FIRST)
    at_first = row[:, None] * CHANNELS + first[None, :]
    x1 = tl.load(X + at_first, mask=inside, other=0.0)
    if SECOND > 0:
        second = FIRST + tl.arange(0, SECOND)
        at_second = row[:, None] * CHANNELS + second[None, :]
        x2 = tl.load(X + at_second, mask=inside, other=0.0)
    in1 = x1
    if SECOND > 0:
        in2 = x2
    if NORM:
        wide1 = x1.to(tl.float32)
        total = tl.sum(wide1, 1)
        if SECOND > 0:
            wide2 = x2.to(tl.float32)
            total += tl.sum(wide2, 1)
        mean = total / CHANNELS
        centred1 = wide1 - mean[:, None]
        squares = tl.sum(centred1 * centred1, 1)
        if SECOND > 0:
            centred2 = wide2 - mean[:, None]
            squares += tl.sum(centred2 * centred2, 1)
        inverse = tl.rsqrt(squares / CHANNELS + eps)
        in1 = _normed(wide1, mean, inverse, SCALE, SHIFT, first, AFFINE).to(x1.dtype)
        if SECOND > 0:
            in2 = _normed(wide2, mean, inverse, SCALE, SHIFT, second, AFFINE).to(x1.dtype)
    out1 = tl.zeros((BLOCK_ROWS, FIRST), tl.float32)
    if SECOND > 0:
        out2 = tl.zeros((BLOCK_ROWS, SECOND), tl.float32)
    for start in range(0, HIDDEN, BLOCK_HIDDEN):
        unit = start + tl.arange(0, BLOCK_HIDDEN)
        hidden = tl.dot(in1, tl.load(WEIGHT1 + unit[None, :] * unit_stride1 + first[:, None] * channel_stride1))
        if SECOND > 0:
            hidden = tl.dot(
                in2, tl.load(WEIGHT1 + unit[None, :] * unit_stride1 + second[:, None] * channel_stride1), hidden
            )
        hidden += tl.load(BIAS1 + unit).to(tl.float32)[None, :]
        if TANH:
            active = gelu_tanh(hidden).to(x1.dtype)
        else:
            active = gelu(hidden).to(x1.dtype)
        out1 = tl.dot(active, tl.load(WEIGHT2 + first[None, :] * channel_stride2 + unit[:, None] * unit_stride2), out1)
        if SECOND > 0:
            out2 = tl.dot(
                active, tl.load(WEIGHT2 + second[None, :] * channel_stride2 + unit[:, None] * unit_stride2), out2
            )
    residual1 = x1
    if not OWN_RESIDUAL:
        residual1 = tl.load(RESIDUAL + at_first, mask=inside, other=0.0)
    out1 += tl.load(BIAS2 + first).to(tl.float32)[None, :] + residual1.to(tl.float32)
    tl.store(OUT + at_first, out1.to(x1.dtype), mask=inside)
    if SECOND > 0:
        residual2 = x2
        if not OWN_RESIDUAL:
            residual2 = tl.load(RESIDUAL + at_second, mask=inside, other=0.0)
        out2 += tl.load(BIAS2 + second).to(tl.float32)[None, :] + residual2.to(tl.float32)
        tl.store(OUT + at_second, out2.to(x1.dtype), mask=inside)


@triton.jit
def displaced(
    X,
    OUT,
    PIECES,
    pieces,
    height,
    width,
    in_channels,
    out_channels,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """One piece of the channels of a line, read some positions away; zero outside the map. Maps (B, H, W, C).

    Elements stand in one dimension: of two, Triton would give neighbouring threads neighbouring positions.
    """
    program = tl.program_id(0)
    piece = PIECES + program % pieces * 7
    read, read_cycle, write, write_cycle = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2), tl.load(piece + 3)
    count, down, right = tl.load(piece + 4), tl.load(piece + 5), tl.load(piece + 6)
    blocks = tl.cdiv(width, BLOCK_COLUMNS)
    block, line = program // pieces % blocks, (program // pieces // blocks).to(tl.int64)
    element = tl.arange(0, BLOCK_COLUMNS * BLOCK_CHANNELS)
    index, column = element % BLOCK_CHANNELS, block * BLOCK_COLUMNS + element // BLOCK_CHANNELS
    from_row, from_column = line % height + down, column + right
    exists = (column < width) & (index < count)
    there = tl.where((from_row >= 0) & (from_row < height), count, 0)
    inside = exists & (index < there) & (from_column >= 0) & (from_column < width)
    source = X + (line + down) * width * in_channels + read
    value = tl.load(source + (from_column * in_channels + index * read_cycle), mask=inside, other=0.0)
    target = OUT + line * width * out_channels + write
    tl.store(target + (column * out_channels + index * write_cycle), value, mask=exists)


@triton.jit
def mix_lines(
    X,
    LOGITS,
    OUT,
    batch_stride,
    line_stride,
    lines,
    x_batch_stride,
    x_line_stride,
    x_token_stride,
    LENGTH: tl.constexpr,
    SEGMENTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_LENGTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """``softmax(logits) @ x`` of one segment of one line; a map and its result (B, H, W, C) of the same strides."""
    program = tl.program_id(0)
    segment = program % SEGMENTS
    line = (program // SEGMENTS) % lines
    image = (program // (SEGMENTS * lines)).to(tl.int64)
    token = tl.arange(0, BLOCK_LENGTH)
    channel = tl.arange(0, BLOCK_WIDTH)
    place = image * batch_stride + line.to(tl.int64) * line_stride + segment * LENGTH * LENGTH
    known = (token < LENGTH)[:, None]
    logits = tl.load(
        LOGITS + place + token[:, None] * LENGTH + token[None, :], mask=known & (token < LENGTH)[None, :], other=0.0
    ).to(tl.float32)
    logits = tl.where((token < LENGTH)[None, :], logits, -float("inf"))
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    weights /= tl.sum(weights, 1)[:, None]
    at = image * x_batch_stride + line.to(tl.int64) * x_line_stride + segment * WIDTH
    at += token[:, None] * x_token_stride + channel[None, :]
    inside = known & (channel < WIDTH)[None, :]
    x = tl.load(X + at, mask=inside, other=0.0)
    tl.store(OUT + at, tl.dot(weights.to(x.dtype), x).to(x.dtype), mask=inside)
