// Where outputs go.
#pragma once

#include "table.h"
#include "vec.h"

namespace PARAGONE_LEVEL {

// Outputs [n, n + count) of token m.
PARAGONE_INLINE void finish(const Out& to, long m, long n, long count, const float* out) {
    float* y = to.y + m * to.stride + n;
    const float* bias = to.bias ? to.bias + n : nullptr;
    long i = 0, whole = count - count % W;
    if (!bias && !to.add)
        for (; i < whole; i += W) store(y + i, load(out + i));
    for (; i < whole; i += W) {
        VF v = load(out + i);
        if (bias) v += load(bias + i);
        if (to.add) v += load(y + i);
        store(y + i, v);
    }
    for (; i < count; i++) y[i] = out[i] + (bias ? bias[i] : 0.0f) + (to.add ? y[i] : 0.0f);
}

}  // namespace PARAGONE_LEVEL
