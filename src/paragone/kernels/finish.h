// Where outputs go.
#pragma once

#include "table.h"
#include "vec.h"

namespace PARAGONE_LEVEL {

// Outputs [n, n + count) of token m.
PARAGONE_INLINE void finish(const Out& to, long m, long n, long count, const float* out) {
    float* y = to.y + m * to.stride + n;
    const float* bias = to.bias ? to.bias + n : nullptr;
    for (long i = 0; i < count; i++) y[i] = out[i] + (bias ? bias[i] : 0.0f) + (to.add ? y[i] : 0.0f);
}

// The same, out of the way: each tile of sums ends in it, and seldom takes it.
static __attribute__((noinline)) void finish_rest(const Out& to, long m, long n, long count, const float* out) {
    finish(to, m, n, count, out);
}

// The same of N registers, of which the last ones need not be needed.
template <int N> PARAGONE_INLINE void finish(const Out& to, long m, long n, long count, const VF (&out)[N]) {
    if (count < N * W) {
        float all[N * W];
        for (int i = 0; i < N; i++) store(all + i * W, out[i]);
        finish_rest(to, m, n, count, all);
        return;
    }
    float* y = to.y + m * to.stride + n;
    const float* bias = to.bias ? to.bias + n : nullptr;
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
        VF v = out[i];
        if (bias) v += load(bias + i * W);
        if (to.add) v += load(y + i * W);
        store(y + i * W, v);
    }
}

// The same of `rows` tokens from m on, one after the other: row(i, out) makes token m + i's. Where they go is read once,
// for the compilers cannot know that outputs do not change it.
template <int N, class Row>
PARAGONE_INLINE void finish_rows(const Out& to, long m, long n, long count, long rows, Row row) {
    const long stride = to.stride;
    float* y = to.y + m * stride + n;
    const float* bias = to.bias ? to.bias + n : nullptr;
    const bool add = to.add;
    for (long i = 0; i < rows; i++, y += stride) {
        VF out[N];
        row(i, out);
        finish({y, 0, bias, add}, 0, 0, count, out);
    }
}

}  // namespace PARAGONE_LEVEL
