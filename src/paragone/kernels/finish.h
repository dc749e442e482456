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

}  // namespace PARAGONE_LEVEL
