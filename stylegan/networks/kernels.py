"""Triton kernels for the element-wise parts of both networks: fewer passes over memory than torch's own operations.

Each kernel reads [N, C, H, W] in channels_last memory format, in half or single precision, computes in single precision
and rounds once at the end. It makes one pass over its inputs. What torch computes in eight passes (blur, noise, bias,
leaky ReLU, statistics, normalisation, style) takes two here, and so does its backward pass.

These are plain functions without autograd; `ops` gives them derivatives. Triton comes with torch's CUDA builds. With
TRITON_INTERPRET=1 the kernels run on a CPU, which the tests use.

The layers from images and to images are convolutions of one pixel that only pass over memory. They have kernels too,
because cuDNN fills their images channels up and leaves bias and activation to passes of their own.

All others work on a block of neighbouring columns and channels, and go down a strip of rows. The blur is separable: a
program blurs each row sideways by three overlapping loads, which the cache serves, and keeps three rows in registers.
What lies outside of the image is zero, as in `ops.blur`.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOPE, EPS = 0.2, 1e-8  # those of `ops`, which imports this file
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE = 1024  # elements of the block that a program holds of each tensor: 16 bytes of bf16 for each of 128 threads
MOST_CHANNELS = 64  # of a block
# Rows of a strip. A strip with blur also reads the rows above and below it, so long strips are better, as long as there
# are enough programs for every GPU.
MOST_ROWS, LEAST_ROWS, LEAST_PROGRAMS = 32, 8, 1024
MERGED = 4096  # numbers that a program merges at once
MOST_IMAGE_CHANNELS = 4  # channels of images
MOST_TILES = 64  # of the pixels that a program sums

# What a kernel does to its input before it may blur it.
PLAIN, ACTIVATE, MASK = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


# --- parts of kernels ---


@triton.jit
def _place(strips, blocks, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr):
    """Return what this program works on: image, tile of it, first row, columns and channels."""
    program, tiles = tl.program_id(0), strips * blocks
    tile = program % tiles
    w, c = tile % blocks * BW + tl.arange(0, BW), tl.program_id(1) * BC + tl.arange(0, BC)
    return program // tiles, tile, tile // blocks * ROWS, w, c


@triton.jit
def _inside(h, w, H, W):
    """Return which columns w of row h are inside of the image, [len(w)]."""
    return (h >= 0) & (h < H) & (w >= 0) & (w < W)


@triton.jit
def _load(pointer, n, h, w, c, H, W, C):
    """Return the elements of row h at the columns w and channels c, [len(w), len(c)]; 0 outside of the image."""
    row = pointer + (n.to(tl.int64) * H + h) * W * C  # images together may have more than 2^31 elements
    mask = _inside(h, w, H, W)[:, None] & (c < C)[None, :]
    return tl.load(row + (w[:, None] * C + c[None, :]), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, value, n, h, w, c, H, W, C):
    row = pointer + (n.to(tl.int64) * H + h) * W * C
    mask = _inside(h, w, H, W)[:, None] & (c < C)[None, :]
    tl.store(row + (w[:, None] * C + c[None, :]), value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _load_noise(noise, noise_n, n, h, w, H, W):
    """Return the noise of row h at the columns w, [len(w), 1]."""
    row = noise + n.to(tl.int64) * noise_n + h * W
    return tl.load(row + w, mask=_inside(h, w, H, W), other=0.0).to(tl.float32)[:, None]


@triton.jit
def _of_channels(pointer, c, C, NEEDED: tl.constexpr = True):
    """Return one number for each channel, [1, len(c)]; zeros if they are not needed."""
    if NEEDED:
        numbers = tl.load(pointer + c, mask=c < C, other=0.0).to(tl.float32)
    else:
        numbers = tl.zeros_like(c).to(tl.float32)
    return numbers[None, :]


@triton.jit
def _store_part(part, block, n, tile, tiles, c, C, KINDS: tl.constexpr, KIND: tl.constexpr):
    """Write the sums of a block's columns to part [N, tiles, KINDS, C]."""
    row = ((n * tiles + tile) * KINDS + KIND).to(tl.int64)
    tl.store(part + row * C + c, tl.sum(block, axis=0), mask=c < C)


@triton.jit
def _act(v, SLOPE: tl.constexpr):
    return tl.maximum(v, v * SLOPE)


@triton.jit
def _slope(v, SLOPE: tl.constexpr):
    """Return the derivative of the leaky ReLU, at its input or at its result, which has the same sign but for a ReLU's."""
    return tl.where(v > 0 if SLOPE == 0 else v >= 0, 1.0, SLOPE)


@triton.jit
def _before(x, aux, b, n, h, w, c, H, W, C, BEFORE: tl.constexpr, SLOPE: tl.constexpr):
    """Return one row of the input of a blur."""
    v = _load(x, n, h, w, c, H, W, C)
    if BEFORE == ACTIVATE:
        v = _act(v + b, SLOPE)
    elif BEFORE == MASK:
        v = v * _slope(_load(aux, n, h, w, c, H, W, C) + b, SLOPE)
    return v


@triton.jit
def _sideways(x, aux, b, n, h, w, c, H, W, C, BEFORE: tl.constexpr, SLOPE: tl.constexpr):
    """Return one row of the input, blurred along the row."""
    left = _before(x, aux, b, n, h, w - 1, c, H, W, C, BEFORE, SLOPE)
    here = _before(x, aux, b, n, h, w, c, H, W, C, BEFORE, SLOPE)
    right = _before(x, aux, b, n, h, w + 1, c, H, W, C, BEFORE, SLOPE)
    if BEFORE == ACTIVATE:
        # Outside of the image the bias was activated, but what is blurred is zero there.
        row = tl.where((h >= 0) & (h < H), 0.25, 0.0)
        before, after = tl.where((w >= 1) & (w <= W), row, 0.0), tl.where(w + 1 < W, row, 0.0)
        return here * (2 * row) + left * before[:, None] + right * after[:, None]
    else:
        return here * 0.5 + (left + right) * 0.25


@triton.jit
def _noisy(v, noise, noise_n, k, b, n, h, w, H, W, NOISE: tl.constexpr):
    """Return v + noise * k + b, the input of a synthesis layer's leaky ReLU."""
    v = v + b
    if NOISE:
        v = v + _load_noise(noise, noise_n, n, h, w, H, W) * k
    return v


@triton.jit
def _epilogue_gradient(
    g, x, noise, noise_n, k, b, middle, gain, mean_g, mean_gx, n, h, w, c, H, W, C,
    NOISE: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Return one row of the gradient of the leaky ReLU's input; 0 outside of the image."""
    v = _noisy(_load(x, n, h, w, c, H, W, C), noise, noise_n, k, b, n, h, w, H, W, NOISE)
    slope = _slope(v, SLOPE)
    grad = _load(g, n, h, w, c, H, W, C) * gain - mean_g - (v * slope - middle) * mean_gx
    return tl.where(_inside(h, w, H, W)[:, None], grad * slope, 0.0)


# --- kernels ---


@triton.jit(do_not_specialize=["H", "W", "strips", "blocks"])
def _act_blur_kernel(
    x, aux, bias, out, H, W, C, strips, blocks,
    BEFORE: tl.constexpr, BIAS: tl.constexpr, BLUR: tl.constexpr, SLOPE: tl.constexpr, ROWS: tl.constexpr,
    BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    n, _tile, first, w, c = _place(strips, blocks, ROWS, BW, BC)
    b = _of_channels(bias, c, C, BIAS)
    if BLUR:
        above = _sideways(x, aux, b, n, first - 1, w, c, H, W, C, BEFORE, SLOPE)
        here = _sideways(x, aux, b, n, first, w, c, H, W, C, BEFORE, SLOPE)
        for row in range(ROWS):
            h = first + row
            below = _sideways(x, aux, b, n, h + 1, w, c, H, W, C, BEFORE, SLOPE)
            _store(out, here * 0.5 + (above + below) * 0.25, n, h, w, c, H, W, C)
            above = here
            here = below
    else:
        for row in range(ROWS):
            h = first + row
            _store(out, _before(x, aux, b, n, h, w, c, H, W, C, BEFORE, SLOPE), n, h, w, c, H, W, C)


@triton.jit(do_not_specialize=["H", "W", "strips", "blocks"])
def _blur_mask_kernel(
    g, aux, bias, out, part, H, W, C, strips, blocks,
    BLUR: tl.constexpr, MASKS: tl.constexpr, BIAS: tl.constexpr, SUMS: tl.constexpr, SLOPE: tl.constexpr,
    ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    n, tile, first, w, c = _place(strips, blocks, ROWS, BW, BC)
    b = _of_channels(bias, c, C, BIAS)
    above = tl.zeros([BW, BC], tl.float32)
    here = tl.zeros([BW, BC], tl.float32)
    sums = tl.zeros([BW, BC], tl.float32)
    if BLUR:
        above = _sideways(g, g, b, n, first - 1, w, c, H, W, C, PLAIN, SLOPE)
        here = _sideways(g, g, b, n, first, w, c, H, W, C, PLAIN, SLOPE)
    for row in range(ROWS):
        h = first + row
        if BLUR:
            below = _sideways(g, g, b, n, h + 1, w, c, H, W, C, PLAIN, SLOPE)
            v = here * 0.5 + (above + below) * 0.25
            above = here
            here = below
        else:
            v = _load(g, n, h, w, c, H, W, C)
        if MASKS:
            v = v * _slope(_load(aux, n, h, w, c, H, W, C) + b, SLOPE)
            _store(out, v, n, h, w, c, H, W, C)
        if SUMS:
            sums += tl.where(_inside(h, w, H, W)[:, None], v, 0.0)
    if SUMS:
        _store_part(part, sums, n, tile, strips * blocks, c, C, 1, 0)


@triton.jit(do_not_specialize=["noise_n", "H", "W", "strips", "blocks"])
def _epilogue_statistics_kernel(
    x, noise, weight, bias, blurred, part, noise_n, H, W, C, strips, blocks,
    NOISE: tl.constexpr, BLUR: tl.constexpr, SLOPE: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Blur, and find mean and sum of squared deviations of the activated values of each tile."""
    n, tile, first, w, c = _place(strips, blocks, ROWS, BW, BC)
    b, k = _of_channels(bias, c, C), _of_channels(weight, c, C, NOISE)
    above = tl.zeros([BW, BC], tl.float32)
    here = tl.zeros([BW, BC], tl.float32)
    if BLUR:
        above = _sideways(x, x, b, n, first - 1, w, c, H, W, C, PLAIN, SLOPE)
        here = _sideways(x, x, b, n, first, w, c, H, W, C, PLAIN, SLOPE)
    # Sums of distances from the activated value of one pixel: so they are exact where all values are equal.
    corner = w * 0 + tile % blocks * BW
    pixel = _load(x, n, first, corner, c, H, W, C)
    pivot = _act(_noisy(pixel, noise, noise_n, k, b, n, first, corner, H, W, NOISE), SLOPE)
    total = tl.zeros([BW, BC], tl.float32)
    squares = tl.zeros([BW, BC], tl.float32)
    for row in range(ROWS):
        h = first + row
        if BLUR:
            below = _sideways(x, x, b, n, h + 1, w, c, H, W, C, PLAIN, SLOPE)
            v = here * 0.5 + (above + below) * 0.25
            above = here
            here = below
            _store(blurred, v, n, h, w, c, H, W, C)
            v = v.to(blurred.dtype.element_ty).to(tl.float32)  # as the next pass will read it
        else:
            v = _load(x, n, h, w, c, H, W, C)
        y = _act(_noisy(v, noise, noise_n, k, b, n, h, w, H, W, NOISE), SLOPE)
        d = tl.where(_inside(h, w, H, W)[:, None], y - pivot, 0.0)
        total += d
        squares += d * d
    # A sum of squares about the mean of the tile is the one about the pivot less count * (mean - pivot)^2.
    count = tl.minimum(H - first, ROWS) * tl.minimum(W - tile % blocks * BW, BW)
    shift = tl.sum(total, axis=0) / count
    deviation = tl.maximum(tl.sum(squares, axis=0) - shift * shift * count, 0.0)
    row = ((n * strips * blocks + tile) * 2).to(tl.int64)
    tl.store(part + row * C + c, tl.max(pivot, axis=0) + shift, mask=c < C)
    tl.store(part + (row + 1) * C + c, deviation, mask=c < C)


@triton.jit(do_not_specialize=["H", "W", "strips", "blocks"])
def _merge_statistics_kernel(
    part, mean, rstd, H, W, C, strips, blocks,
    EPS: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Merge the means and sums of squared deviations of tiles (Chan, Golub, LeVeque 1979, equation 2.1)."""
    n, c = tl.program_id(0), tl.program_id(1) * BC + tl.arange(0, BC)
    tiles, tile = strips * blocks, tl.arange(0, TILES)
    count = tl.minimum(H - tile // blocks * ROWS, ROWS) * tl.minimum(W - tile % blocks * BW, BW)
    count = tl.where(tile < tiles, count, 0).to(tl.float32)[:, None]
    mask = (tile < tiles)[:, None] & (c < C)[None, :]
    rows = part + n.to(tl.int64) * tiles * 2 * C + (tile[:, None] * 2 * C + c[None, :])
    means, squares = tl.load(rows, mask=mask, other=0.0), tl.load(rows + C, mask=mask, other=0.0)
    pivot = tl.load(part + n.to(tl.int64) * tiles * 2 * C + c, mask=c < C, other=0.0)
    middle = pivot + tl.sum((means - pivot[None, :]) * count, axis=0) / (H * W)
    delta = means - middle[None, :]
    variance = tl.sum(squares + delta * delta * count, axis=0) / (H * W)
    tl.store(mean + n * C + c, middle, mask=c < C)
    tl.store(rstd + n * C + c, 1.0 / tl.sqrt(variance + EPS), mask=c < C)


@triton.jit(do_not_specialize=["noise_n", "H", "W", "strips", "blocks"])
def _epilogue_style_kernel(
    x, noise, weight, bias, mean, rstd, style, out, noise_n, H, W, C, strips, blocks,
    NOISE: tl.constexpr, SLOPE: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Activate, normalise and apply the style."""
    n, _tile, first, w, c = _place(strips, blocks, ROWS, BW, BC)
    b, k = _of_channels(bias, c, C), _of_channels(weight, c, C, NOISE)
    middle, shift = _of_channels(mean + n * C, c, C), _of_channels(style + (2 * n + 1) * C, c, C)
    gain = _of_channels(rstd + n * C, c, C) * (_of_channels(style + 2 * n * C, c, C) + 1)
    for row in range(ROWS):
        h = first + row
        v = _load(x, n, h, w, c, H, W, C)
        y = _act(_noisy(v, noise, noise_n, k, b, n, h, w, H, W, NOISE), SLOPE)
        _store(out, (y - middle) * gain + shift, n, h, w, c, H, W, C)


@triton.jit(do_not_specialize=["noise_n", "H", "W", "strips", "blocks"])
def _epilogue_sums_kernel(
    g, x, noise, weight, bias, mean, rstd, part, noise_n, H, W, C, strips, blocks,
    NOISE: tl.constexpr, SLOPE: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sum the products of the output gradient with the normalised values, and the output gradient."""
    n, tile, first, w, c = _place(strips, blocks, ROWS, BW, BC)
    b, k = _of_channels(bias, c, C), _of_channels(weight, c, C, NOISE)
    middle = _of_channels(mean + n * C, c, C)
    products = tl.zeros([BW, BC], tl.float32)
    total = tl.zeros([BW, BC], tl.float32)
    for row in range(ROWS):
        h = first + row
        v = _load(x, n, h, w, c, H, W, C)
        y = _act(_noisy(v, noise, noise_n, k, b, n, h, w, H, W, NOISE), SLOPE)
        grad = _load(g, n, h, w, c, H, W, C)
        products += grad * (y - middle)
        total += grad
    products = products * _of_channels(rstd + n * C, c, C)
    _store_part(part, products, n, tile, strips * blocks, c, C, 2, 0)
    _store_part(part, total, n, tile, strips * blocks, c, C, 2, 1)


@triton.jit(do_not_specialize=["noise_n", "H", "W", "strips", "blocks"])
def _epilogue_backward_kernel(
    g, x, noise, weight, bias, mean, rstd, style, sums, out, part, noise_n, H, W, C, strips, blocks,
    NOISE: tl.constexpr, BLUR: tl.constexpr, SLOPE: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the input, and sum those of bias and noise weight."""
    n, tile, first, w, c = _place(strips, blocks, ROWS, BW, BC)
    b, k = _of_channels(bias, c, C), _of_channels(weight, c, C, NOISE)
    middle, r = _of_channels(mean + n * C, c, C), _of_channels(rstd + n * C, c, C)
    # The gradient is gain * (g - mean of g - normalised value * mean of its product with g).
    gain = r * (_of_channels(style + 2 * n * C, c, C) + 1)
    mean_gx = _of_channels(sums + 2 * n * C, c, C) / (H * W) * r * gain
    mean_g = _of_channels(sums + (2 * n + 1) * C, c, C) / (H * W) * gain
    above = tl.zeros([BW, BC], tl.float32)
    here = tl.zeros([BW, BC], tl.float32)
    grad = tl.zeros([BW, BC], tl.float32)
    grad_bias = tl.zeros([BW, BC], tl.float32)
    grad_weight = tl.zeros([BW, BC], tl.float32)
    # With blur, the loop is two rows ahead: it finds the gradient of a row before that of the row above is written.
    for step in range(ROWS + 2 if BLUR else ROWS):
        h = first + step
        if BLUR:
            h = h - 1
            left = _epilogue_gradient(
                g, x, noise, noise_n, k, b, middle, gain, mean_g, mean_gx, n, h, w - 1, c, H, W, C, NOISE, SLOPE
            )
            right = _epilogue_gradient(
                g, x, noise, noise_n, k, b, middle, gain, mean_g, mean_gx, n, h, w + 1, c, H, W, C, NOISE, SLOPE
            )
            grad = _epilogue_gradient(
                g, x, noise, noise_n, k, b, middle, gain, mean_g, mean_gx, n, h, w, c, H, W, C, NOISE, SLOPE
            )
            below = grad * 0.5 + (left + right) * 0.25
            if step >= 2:
                _store(out, here * 0.5 + (above + below) * 0.25, n, h - 1, w, c, H, W, C)
            above = here
            here = below
            # The first and the last of these rows belong to the sums of other programs.
            grad = tl.where((h >= first) & (h < first + ROWS), grad, 0.0)
        else:
            grad = _epilogue_gradient(
                g, x, noise, noise_n, k, b, middle, gain, mean_g, mean_gx, n, h, w, c, H, W, C, NOISE, SLOPE
            )
            _store(out, grad, n, h, w, c, H, W, C)
        grad_bias += grad
        if NOISE:
            grad_weight += grad * _load_noise(noise, noise_n, n, h, w, H, W)
    _store_part(part, grad_bias, n, tile, strips * blocks, c, C, 2, 0)
    _store_part(part, grad_weight, n, tile, strips * blocks, c, C, 2, 1)


@triton.jit
def _masked(grad, d, gain, offset, RELU: tl.constexpr):
    """Return the gradient of d * gain + offset from that of its result, which a ReLU may have made."""
    return tl.where(d * gain + offset > 0, grad, 0.0) if RELU else grad


@triton.jit(do_not_specialize=["mean_n", "gain_n", "shift_n", "H", "W", "strips", "blocks"])
def _affine_kernel(
    x, mean, gain, shift, out, mean_n, gain_n, shift_n, H, W, C, strips, blocks,
    RELU: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    n, _tile, first, w, c = _place(strips, blocks, ROWS, BW, BC)
    middle, factor = _of_channels(mean + n * mean_n, c, C), _of_channels(gain + n * gain_n, c, C)
    offset = _of_channels(shift + n * shift_n, c, C)
    for row in range(ROWS):
        h = first + row
        y = (_load(x, n, h, w, c, H, W, C) - middle) * factor + offset
        _store(out, tl.maximum(y, 0.0) if RELU else y, n, h, w, c, H, W, C)


@triton.jit(do_not_specialize=["mean_n", "gain_n", "shift_n", "H", "W", "strips", "blocks"])
def _affine_sums_kernel(
    g, x, mean, gain, shift, part, mean_n, gain_n, shift_n, H, W, C, strips, blocks,
    RELU: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sum the gradient, and its products with the distances from the mean."""
    n, tile, first, w, c = _place(strips, blocks, ROWS, BW, BC)
    middle, factor = _of_channels(mean + n * mean_n, c, C), _of_channels(gain + n * gain_n, c, C)
    offset = _of_channels(shift + n * shift_n, c, C)
    total = tl.zeros([BW, BC], tl.float32)
    products = tl.zeros([BW, BC], tl.float32)
    for row in range(ROWS):
        h = first + row
        d = _load(x, n, h, w, c, H, W, C) - middle
        grad = _masked(_load(g, n, h, w, c, H, W, C), d, factor, offset, RELU)  # 0 outside of the image
        total += grad
        products += grad * d
    _store_part(part, total, n, tile, strips * blocks, c, C, 2, 0)
    _store_part(part, products, n, tile, strips * blocks, c, C, 2, 1)


@triton.jit(do_not_specialize=["mean_n", "gain_n", "shift_n", "more_n", "H", "W", "strips", "blocks"])
def _affine_backward_kernel(
    g, x, mean, gain, shift, base, slope, out, mean_n, gain_n, shift_n, more_n, H, W, C, strips, blocks,
    RELU: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute gradient * gain + base + slope * distance from the mean."""
    n, _tile, first, w, c = _place(strips, blocks, ROWS, BW, BC)
    middle, factor = _of_channels(mean + n * mean_n, c, C), _of_channels(gain + n * gain_n, c, C)
    offset = _of_channels(shift + n * shift_n, c, C)
    b, s = _of_channels(base + n * more_n, c, C), _of_channels(slope + n * more_n, c, C)
    for row in range(ROWS):
        h = first + row
        d = _load(x, n, h, w, c, H, W, C) - middle
        grad = _masked(_load(g, n, h, w, c, H, W, C), d, factor, offset, RELU)
        _store(out, grad * factor + b + s * d, n, h, w, c, H, W, C)


# --- kernels of convolutions of one pixel between images, which have few channels, and features ---


@triton.jit
def _load_pixels(pointer, p, c, pixels, C):
    """Return the channels c of the pixels p, [len(p), len(c)]; 0 beyond the last ones."""
    mask = (p < pixels)[:, None] & (c < C)[None, :]
    return tl.load(pointer + (p * C)[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_masked(x, y, p, c, pixels, C, MASK: tl.constexpr, SLOPE: tl.constexpr):
    """Return the channels c of the pixels p of x; if MASK, times the slope of the activation with result y."""
    v = _load_pixels(x, p, c, pixels, C)
    if MASK:
        v = v * _slope(_load_pixels(y, p, c, pixels, C), SLOPE)
    return v


@triton.jit
def _load_image(images, p, i, pixels, CHANNELS: tl.constexpr):
    """Return channel i of the pixels p of images, [len(p), 1]."""
    return tl.load(images + p * CHANNELS + i, mask=p < pixels, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _load_weight(weight, i, c, C):
    """Return the weights between channel i of images and the channels c of features, [1, len(c)]."""
    return tl.load(weight + i * C + c, mask=c < C, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["pixels"])
def _from_images_kernel(
    images, weight, bias, out, pixels, C,
    CHANNELS: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute features from images."""
    p, c = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP), tl.program_id(1) * BC + tl.arange(0, BC)
    v = tl.zeros([BP, BC], tl.float32) + _of_channels(bias, c, C, BIAS)
    for i in tl.static_range(CHANNELS):
        v += _load_image(images, p, i, pixels, CHANNELS) * _load_weight(weight, i, c, C)
    mask = (p < pixels)[:, None] & (c < C)[None, :]
    tl.store(out + (p * C)[:, None] + c[None, :], _act(v, SLOPE).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pixels"])
def _to_images_kernel(
    x, y, weight, bias, out, pixels, C,
    CHANNELS: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr, GROUPS: tl.constexpr,
    MOST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute images from features."""
    p, own = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP), tl.arange(0, MOST)
    sums = tl.zeros([BP, MOST], tl.float32) + _of_channels(bias, own, CHANNELS, BIAS)
    for group in range(GROUPS):
        c = group * BC + tl.arange(0, BC)
        v = _load_masked(x, y, p, c, pixels, C, MASK, SLOPE)
        for i in tl.static_range(CHANNELS):
            found = tl.sum(v * _load_weight(weight, i, c, C), axis=1)
            sums += tl.where(own[None, :] == i, found[:, None], 0.0)
    mask = (p < pixels)[:, None] & (own < CHANNELS)[None, :]
    tl.store(out + (p * CHANNELS)[:, None] + own[None, :], sums.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pixels"])
def _image_sums_kernel(
    x, y, images, part, pixels, C,
    CHANNELS: tl.constexpr, MASK: tl.constexpr, TOTAL: tl.constexpr, SLOPE: tl.constexpr, TILES: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sum the products of features with each channel of images over pixels, and the features themselves."""
    program, c = tl.program_id(0), tl.program_id(1) * BC + tl.arange(0, BC)
    first = program.to(tl.int64) * (TILES * BP) + tl.arange(0, BP)
    with_0 = tl.zeros([BP, BC], tl.float32)
    with_1 = tl.zeros([BP, BC], tl.float32)
    with_2 = tl.zeros([BP, BC], tl.float32)
    with_3 = tl.zeros([BP, BC], tl.float32)
    total = tl.zeros([BP, BC], tl.float32)
    for tile in range(TILES):
        p = first + tile * BP
        v = _load_masked(x, y, p, c, pixels, C, MASK, SLOPE)
        with_0 += v * _load_image(images, p, 0, pixels, CHANNELS)
        if CHANNELS > 1:
            with_1 += v * _load_image(images, p, 1, pixels, CHANNELS)
        if CHANNELS > 2:
            with_2 += v * _load_image(images, p, 2, pixels, CHANNELS)
        if CHANNELS > 3:
            with_3 += v * _load_image(images, p, 3, pixels, CHANNELS)
        if TOTAL:
            total += v
    row = part + program.to(tl.int64) * (CHANNELS + 1) * C + c
    tl.store(row, tl.sum(with_0, axis=0), mask=c < C)
    if CHANNELS > 1:
        tl.store(row + C, tl.sum(with_1, axis=0), mask=c < C)
    if CHANNELS > 2:
        tl.store(row + 2 * C, tl.sum(with_2, axis=0), mask=c < C)
    if CHANNELS > 3:
        tl.store(row + 3 * C, tl.sum(with_3, axis=0), mask=c < C)
    tl.store(row + CHANNELS * C, tl.sum(total, axis=0), mask=c < C)


# --- kernels of weights ---


@triton.jit
def _tap(rows, i, count, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, ROTATED: tl.constexpr):
    """Return pixel (H, W) of a kernel [SIDE, SIDE] for the input channels i; 0 outside of the kernel."""
    if H >= 0 and H < SIDE and W >= 0 and W < SIDE:
        place = SIDE * SIDE - 1 - (H * SIDE + W) if ROTATED else H * SIDE + W
        return tl.load(rows + place * count + i, mask=i < count, other=0.0).to(tl.float32)
    else:
        return tl.zeros_like(i).to(tl.float32)


@triton.jit
def _four_tap_kernel(
    x, out, scale, count,
    ROTATED: tl.constexpr, ADJOINT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum four shifts of kernels [3, 3] by one pixel, to [4, 4]; or the adjoint of that."""
    FROM: tl.constexpr = 4 if ADJOINT else 3
    TO: tl.constexpr = 3 if ADJOINT else 4
    STEP: tl.constexpr = 1 if ADJOINT else -1
    o, i = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    rows, written = x + o * (FROM * FROM * count), out + o * (TO * TO * count)
    for h in tl.static_range(TO):
        for w in tl.static_range(TO):
            v = _tap(rows, i, count, h, w, FROM, ROTATED) + _tap(rows, i, count, h + STEP, w, FROM, ROTATED)
            v += _tap(rows, i, count, h, w + STEP, FROM, ROTATED)
            v += _tap(rows, i, count, h + STEP, w + STEP, FROM, ROTATED)
            tl.store(written + (h * TO + w) * count + i, (v * scale).to(out.dtype.element_ty), mask=i < count)


# --- launching ---


class _Grid(NamedTuple):
    """How the work on one tensor is cut into programs."""

    launch: tuple[int, int]
    sizes: tuple[int, int, int, int, int]  # H, W, C, strips, blocks of columns
    block: dict[str, int]  # rows of a strip, columns, channels, and warps of a program

    @property
    def tiles(self) -> int:
        """The number of tiles of an image."""
        return self.sizes[3] * self.sizes[4]

    def parts(self, x: Tensor, kinds: int) -> Tensor:
        """Return memory for what each program finds for each channel, [N, tiles, kinds, C]."""
        return x.new_empty(x.shape[0], self.tiles, kinds, x.shape[1], dtype=torch.float32)


@lru_cache(maxsize=1024)
def _grid(n: int, channels: int, height: int, width: int) -> _Grid:
    bc = min(triton.next_power_of_2(channels), MOST_CHANNELS)
    bw = min(triton.next_power_of_2(width), TILE // bc)
    blocks, groups = triton.cdiv(width, bw), triton.cdiv(channels, bc)
    rows = min(triton.next_power_of_2(height), MOST_ROWS)
    while rows > LEAST_ROWS and n * groups * blocks * triton.cdiv(height, rows) < LEAST_PROGRAMS:
        rows //= 2
    strips = triton.cdiv(height, rows)
    block = {"ROWS": rows, "BW": bw, "BC": bc, "num_warps": max(1, min(4, bw * bc // 256))}
    return _Grid((n * strips * blocks, groups), (height, width, channels, strips, blocks), block)


def try_out(device: torch.device) -> None:
    """Run each kind of kernel once on small images. Raises whatever keeps one from working here."""
    x, channels = torch.zeros(1, 2, 4, 4, device=device), torch.zeros(2, device=device)
    noise, style = torch.zeros(1, 1, 4, 4, device=device), torch.zeros(1, 4, device=device)
    blur(x)
    mask_blur(x, act_blur(x, channels, blurs=True), channels)
    blur_mask(x, x, channels, blurs=True, sums=True)
    _, saved = epilogue(x, noise, channels, channels, style, blurs=True)
    epilogue_backward(x, saved, noise, channels, channels, style, blurs=True)
    mean, rstd = moments(x, eps=EPS)
    affine(x, mean, rstd, mean, relu=True)
    affine_sums(x, x, mean, rstd, mean, relu=True)
    affine_backward(x, x, mean, rstd, mean, mean, mean, relu=True)
    weight = x.new_zeros(2, 1)
    to_images(x, weight, y=from_images(x[:, :1], weight, channels, slope=SLOPE))
    image_sums(x, x[:, :1], y=x, total=True)
    for adjoint in (False, True):
        four_tap(x.new_zeros(1, 1, 3 + adjoint, 3 + adjoint), 1.0, rotated=False, adjoint=adjoint, dtype=torch.float32)


def blur(x: Tensor) -> Tensor:
    """Compute `ops.blur`."""
    return _act_blur(_dense(x), None, None, PLAIN.value, blurs=True)


def act_blur(x: Tensor, bias: Tensor | None, *, blurs: bool, out: Tensor | None = None, slope: float = SLOPE) -> Tensor:
    """Compute lrelu(x + bias), and blur it if `blurs`. Without blur, `out` may be x itself, in channels_last."""
    return _act_blur(_dense(x), None, bias, ACTIVATE.value, blurs=blurs, out=out, slope=slope)


def mask_blur(g: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Compute blur(g * slope of the leaky ReLU at x + bias)."""
    return _act_blur(_dense(g), _dense(x), bias, MASK.value, blurs=True)


def _act_blur(
    x: Tensor,
    aux: Tensor | None,
    bias: Tensor | None,
    before: int,
    *,
    blurs: bool,
    out: Tensor | None = None,
    slope: float = SLOPE,
) -> Tensor:
    grid, out = _grid(*x.shape), torch.empty_like(x) if out is None else out
    with _on(x):
        _act_blur_kernel[grid.launch](
            x, _or(aux, x), _or(bias, x), out, *grid.sizes, BEFORE=before, BIAS=bias is not None, BLUR=blurs,
            SLOPE=slope, **grid.block,
        )  # fmt: skip
    return out


def blur_mask(
    g: Tensor, x: Tensor, bias: Tensor | None, *, blurs: bool, sums: bool, slope: float = SLOPE
) -> tuple[Tensor, Tensor | None]:
    """Compute blur(g) * slope of the leaky ReLU at x + bias; without `blurs`, g itself. With `sums` also its sums [C]."""
    g, x = _dense(g), _dense(x)
    grid, out = _grid(*g.shape), torch.empty_like(g)
    part = grid.parts(g, 1) if sums else g
    with _on(g):
        _blur_mask_kernel[grid.launch](
            g, x, _or(bias, g), out, part, *grid.sizes, BLUR=blurs, MASKS=True, BIAS=bias is not None, SUMS=sums,
            SLOPE=slope, **grid.block,
        )  # fmt: skip
    return out, part.sum((0, 1, 2)) if sums else None


def channel_sums(g: Tensor) -> Tensor:
    """Sum over images and pixels, [N, C, H, W] to [C] in single precision."""
    g = _dense(g)
    grid = _grid(*g.shape)
    part = grid.parts(g, 1)
    with _on(g):
        _blur_mask_kernel[grid.launch](
            g, g, g, g, part, *grid.sizes, BLUR=False, MASKS=False, BIAS=False, SUMS=True, SLOPE=SLOPE, **grid.block
        )
    return part.sum((0, 1, 2))


class Epilogue(NamedTuple):
    """What the backward pass of a synthesis layer's epilogue needs."""

    x: Tensor  # the input, blurred if the layer blurs
    mean: Tensor  # [N, C], of the activated values
    rstd: Tensor  # [N, C]


def epilogue(
    x: Tensor, noise: Tensor | None, noise_weight: Tensor | None, bias: Tensor, style: Tensor, *, blurs: bool
) -> tuple[Tensor, Epilogue]:
    """Compute `epilogue.epilogue` in two passes: statistics, then the result."""
    x, noise, style = _dense(x), None if noise is None else noise.contiguous(), style.contiguous()
    grid = _grid(*x.shape)
    blurred, out = torch.empty_like(x) if blurs else x, torch.empty_like(x)
    part = grid.parts(x, 2)
    given, noise_n = (_or(noise, x), _or(noise_weight, x), bias), _stride(noise)
    common = {"NOISE": noise is not None, "SLOPE": SLOPE, **grid.block}
    with _on(x):
        _epilogue_statistics_kernel[grid.launch](x, *given, blurred, part, noise_n, *grid.sizes, BLUR=blurs, **common)
        mean, rstd = _merge(part, grid, eps=EPS)
        _epilogue_style_kernel[grid.launch](blurred, *given, mean, rstd, style, out, noise_n, *grid.sizes, **common)
    return out, Epilogue(blurred, mean, rstd)


def epilogue_backward(
    g: Tensor,
    saved: Epilogue,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    bias: Tensor,
    style: Tensor,
    *,
    blurs: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return the gradients of x, noise weight [C], bias [C] and style [N, 2C], in two passes: sums, then the result."""
    g, noise, style = _dense(g), None if noise is None else noise.contiguous(), style.contiguous()
    x, mean, rstd = saved
    grid, out = _grid(*g.shape), torch.empty_like(g)
    given, noise_n = (_or(noise, x), _or(noise_weight, x), bias, mean, rstd), _stride(noise)
    common = {"NOISE": noise is not None, "SLOPE": SLOPE, **grid.block}
    part, own = grid.parts(g, 2), grid.parts(g, 2)
    with _on(g):
        _epilogue_sums_kernel[grid.launch](g, x, *given, part, noise_n, *grid.sizes, **common)
        sums = part.sum(1)  # [N, 2, C]: gradients of scale and shift
        _epilogue_backward_kernel[grid.launch](
            g, x, *given, style, sums, out, own, noise_n, *grid.sizes, BLUR=blurs, **common
        )
    grad_bias, grad_weight = own.sum((0, 1))
    return out, grad_weight if noise is not None else None, grad_bias, sums.flatten(1)


def _merge(part: Tensor, grid: _Grid, *, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and reciprocal deviation [N, C] from what `_epilogue_statistics_kernel` found of each tile."""
    n, _, _, channels = part.shape
    mean, rstd = part.new_empty(2, n, channels)
    tiles = triton.next_power_of_2(grid.tiles)
    merged = max(1, min(grid.block["BC"], MERGED // tiles))  # channels of a program
    _merge_statistics_kernel[n, triton.cdiv(channels, merged)](
        part, mean, rstd, *grid.sizes, EPS=eps, TILES=tiles, **grid.block | {"BC": merged}
    )
    return mean, rstd


def moments(x: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and reciprocal deviation of each channel of each image [N, C, H, W], [N, C] in single precision."""
    x = _dense(x)
    grid = _grid(*x.shape)
    part, no_bias = grid.parts(x, 2), x.new_zeros(x.shape[1], dtype=torch.float32)
    with _on(x):
        # With a slope of 1 nothing is activated.
        _epilogue_statistics_kernel[grid.launch](
            x, x, x, no_bias, x, part, 0, *grid.sizes, NOISE=False, BLUR=False, SLOPE=1.0, **grid.block
        )
        return _merge(part, grid, eps=eps)


def affine(x: Tensor, mean: Tensor, gain: Tensor, shift: Tensor, *, relu: bool) -> Tensor:
    """Compute (x - mean) * gain + shift, and its ReLU if asked for; numbers [N or 1, C] for x [N, C, H, W]."""
    x, numbers = _dense(x), [t.contiguous() for t in (mean, gain, shift)]
    grid, out = _grid(*x.shape), torch.empty_like(x)
    with _on(x):
        _affine_kernel[grid.launch](x, *numbers, out, *map(_step, numbers), *grid.sizes, RELU=relu, **grid.block)
    return out


def affine_sums(
    g: Tensor, x: Tensor, mean: Tensor, gain: Tensor, shift: Tensor, *, relu: bool
) -> tuple[Tensor, Tensor]:
    """Sum over pixels the gradient g of the result of `affine`, before its ReLU, and its products with x - mean.

    Returns:
        Both sums, [N, C] in single precision.
    """
    g, x, numbers = _dense(g), _dense(x), [t.contiguous() for t in (mean, gain, shift)]
    grid = _grid(*g.shape)
    part = grid.parts(g, 2)
    with _on(g):
        _affine_sums_kernel[grid.launch](
            g, x, *numbers, part, *map(_step, numbers), *grid.sizes, RELU=relu, **grid.block
        )
    total, products = part.sum(1).unbind(1)
    return total, products


def affine_backward(
    g: Tensor, x: Tensor, mean: Tensor, gain: Tensor, shift: Tensor, base: Tensor, slope: Tensor, *, relu: bool
) -> Tensor:
    """Compute g * gain + base + slope * (x - mean), where g is the gradient of the result of `affine` before its ReLU.

    All numbers are [N or 1, C]; `base` and `slope` have one shape.
    """
    g, x, numbers = _dense(g), _dense(x), [t.contiguous() for t in (mean, gain, shift, base, slope)]
    grid, out = _grid(*g.shape), torch.empty_like(g)
    with _on(g):
        _affine_backward_kernel[grid.launch](
            g, x, *numbers, out, *map(_step, numbers[:4]), *grid.sizes, RELU=relu, **grid.block
        )
    return out


def from_images(images: Tensor, weight: Tensor, bias: Tensor | None, *, slope: float = 1.0) -> Tensor:
    """Convolve images with a kernel of one pixel, add the bias, and apply a leaky ReLU of this slope.

    Args:
        images: [N, F, H, W], F at most MOST_IMAGE_CHANNELS.
        weight: [C, F], in any memory order.
        bias: [C].
        slope: 1 changes nothing.

    Returns:
        [N, C, H, W].
    """
    images, channels = _dense(images), weight.shape[0]
    n, _, height, width = images.shape
    out = _empty(images, channels)
    pixels, block = n * height * width, _pixel_block(channels)
    if not pixels:
        return out
    launch = triton.cdiv(pixels, block["BP"]), triton.cdiv(channels, block["BC"])
    with _on(images):
        _from_images_kernel[launch](
            images, _by_image_channel(weight), _or(bias, images), out, pixels, channels, CHANNELS=images.shape[1],
            BIAS=bias is not None, SLOPE=slope, **block,
        )  # fmt: skip
    return out


def to_images(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, y: Tensor | None = None, slope: float = SLOPE
) -> Tensor:
    """Convolve features with a kernel of one pixel to images, and add the bias.

    Args:
        x: [N, C, H, W]; with y it is multiplied by the slope of the leaky ReLU with result y first.
        weight: [C, F], F at most MOST_IMAGE_CHANNELS, in any memory order.
        bias: [F].
        y: [N, C, H, W].
        slope: that of the leaky ReLU.

    Returns:
        [N, F, H, W].
    """
    x, y = _dense(x), None if y is None else _dense(y)
    (n, channels, height, width), images = x.shape, weight.shape[1]
    out = _empty(x, images)
    pixels, block = n * height * width, _pixel_block(channels)
    if not pixels:
        return out
    with _on(x):
        _to_images_kernel[triton.cdiv(pixels, block["BP"]),](
            x, _or(y, x), _by_image_channel(weight), _or(bias, x), out, pixels, channels, CHANNELS=images,
            MASK=y is not None, BIAS=bias is not None, SLOPE=slope, GROUPS=triton.cdiv(channels, block["BC"]),
            MOST=MOST_IMAGE_CHANNELS, **block,
        )  # fmt: skip
    return out


def image_sums(
    x: Tensor, images: Tensor, *, y: Tensor | None = None, total: bool, slope: float = SLOPE
) -> tuple[Tensor, Tensor | None]:
    """Sum the products of features and images over images and pixels, in two stages: for each program, then all of them.

    Args:
        x: [N, C, H, W]; with y it is multiplied by the slope of the leaky ReLU with result y first.
        images: [N, F, H, W], F at most MOST_IMAGE_CHANNELS.
        y: [N, C, H, W].
        total: whether to sum the features, too.
        slope: that of the leaky ReLU.

    Returns:
        The sums [C, F], and those of the features [C], in single precision.
    """
    x, images, y = _dense(x), _dense(images), None if y is None else _dense(y)
    channels, pixels, block = x.shape[1], x.numel() // max(x.shape[1], 1), _pixel_block(x.shape[1])
    tiles, groups = triton.cdiv(pixels, block["BP"]), triton.cdiv(channels, block["BC"])
    # As many tiles for each program as leave enough programs.
    each = min(triton.next_power_of_2(max(tiles * groups // LEAST_PROGRAMS, 1)), MOST_TILES)
    programs = triton.cdiv(tiles, each)
    part = x.new_empty(programs, images.shape[1] + 1, channels, dtype=torch.float32)
    if programs:
        with _on(x):
            _image_sums_kernel[programs, groups](
                x, _or(y, x), images, part, pixels, channels, CHANNELS=images.shape[1], MASK=y is not None, TOTAL=total,
                SLOPE=slope, TILES=each, **block,
            )  # fmt: skip
    sums = part.sum(0)
    return sums[:-1].t(), sums[-1] if total else None


def _empty(like: Tensor, channels: int) -> Tensor:
    """Return memory for a tensor with another number of channels."""
    n, _, height, width = like.shape
    return torch.empty(
        (n, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def four_tap(weight: Tensor, scale: float, *, rotated: bool, adjoint: bool, dtype: torch.dtype) -> Tensor:
    """Compute `convolution.four_tap`, rounded to `dtype`: [O, I, 3, 3] to [O, I, 4, 4]; or its adjoint, the other way."""
    weight, side = _dense(weight), 3 if adjoint else 4
    outputs, inputs = weight.shape[:2]
    out = torch.empty(
        (outputs, inputs, side, side), dtype=dtype, device=weight.device, memory_format=torch.channels_last
    )
    block = min(triton.next_power_of_2(inputs), TILE // 2)
    with _on(weight):
        _four_tap_kernel[outputs, triton.cdiv(inputs, block)](
            weight, out, scale, inputs, ROTATED=rotated, ADJOINT=adjoint, BLOCK=block,
            num_warps=max(1, min(4, block // 128)),
        )  # fmt: skip
    return out


def _by_image_channel(weight: Tensor) -> Tensor:
    """Give a weight [C, F] the memory order [F, C], in which a thread reads the weights of its channels at once."""
    return weight.t().contiguous()


def _pixel_block(channels: int) -> dict[str, int]:
    """Return how many pixels and channels a program works on at a time, and its warps."""
    bc = min(triton.next_power_of_2(channels), MOST_CHANNELS)
    bp = max(TILE // bc, 1)
    return {"BP": bp, "BC": bc, "num_warps": max(1, min(4, bp * bc // 256))}


def _on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which kernels start on the device of x; Triton takes the current device."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(x.device)


_HERE = contextlib.nullcontext()


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """Return a tensor that a kernel gets in the place of one that it does not read."""
    return other if tensor is None else tensor


def _stride(noise: Tensor | None) -> int:
    """Return the distance between the noise of two images in memory; 0 if all have the same."""
    return 0 if noise is None or noise.shape[0] == 1 else noise.stride(0)


def _step(numbers: Tensor) -> int:
    """Return the distance between the numbers [N or 1, C] of two images in memory; 0 if all have the same."""
    return 0 if numbers.shape[0] == 1 else numbers.shape[1]
