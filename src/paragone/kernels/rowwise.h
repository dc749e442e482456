// What a decoder does between its products, one row or one head at a time, in float, rounded once.
#pragma once

#include <algorithm>
#include <cmath>

#include "table.h"
#include "vec.h"

namespace PARAGONE_LEVEL {

static void widen_all(const uint16_t* from, float* to, long n) {
    long i = 0;
    for (; i + W <= n; i += W) store(to + i, load(from + i));
    for (; i < n; i++) to[i] = widen(from[i]);
}

static void narrow_all(const float* from, const uint16_t* bias, uint16_t* to, long n) {
    long i = 0;
    for (; i + W <= n; i += W) store(to + i, bias ? load(from + i) + load(bias + i) : load(from + i));
    for (; i < n; i++) to[i] = narrow(bias ? from[i] + widen(bias[i]) : from[i]);
}

static void rms_norm(const uint16_t* x, const float* wide_weight, const uint16_t* weight, float eps, long D,
                     uint16_t* y) {
    VF squares = {};
    long d = 0;
    for (; d + W <= D; d += W) {
        VF v = load(x + d);
        squares += v * v;
    }
    float total = sum(squares);
    for (long i = d; i < D; i++) total += widen(x[i]) * widen(x[i]);
    float scale = 1.0f / std::sqrt(total / D + eps);
    for (d = 0; d + W <= D; d += W) {
        VF v = load(x + d) * scale;
        if (wide_weight) {
            store(y + d, v * load(wide_weight + d));
        } else {  // Llama's order: the normalised value is rounded before the weight meets it
            store(y + d, v);
            store(y + d, load(y + d) * load(weight + d));
        }
    }
    for (; d < D; d++) {
        float v = widen(x[d]) * scale;
        y[d] = wide_weight ? narrow(v * wide_weight[d]) : narrow(widen(narrow(v)) * widen(weight[d]));
    }
}

static void rotate(uint16_t* x, const uint16_t* cos, const uint16_t* sin, long E) {
    long half = E / 2, e = 0;
    for (; e + W <= half; e += W) {
        VF a = load(x + e), b = load(x + half + e);
        store(x + e, a * load(cos + e) + b * load(sin + e));
        store(x + half + e, b * load(cos + half + e) + a * load(sin + half + e));
    }
    for (; e < half; e++) {
        float a = widen(x[e]), b = widen(x[half + e]);
        x[e] = narrow(a * widen(cos[e]) + b * widen(sin[e]));
        x[half + e] = narrow(b * widen(cos[half + e]) + a * widen(sin[half + e]));
    }
}

// SiLU: g / (1 + e^-g). GELU by tanh: g / (1 + e^-2u) with u = sqrt(2 / pi) (g + 0.044715 g^3).
PARAGONE_INLINE VF activated(VF g, int activation) {
    VF u = activation == 0 ? g : g * (1.0f + g * g * 0.044715f) * 1.5957691216057308f;
    return g / (exp(-u) + 1.0f);
}

static void gated(const uint16_t* gate, const uint16_t* up, int activation, long n, uint16_t* y) {
    long i = 0;
    for (; i + W <= n; i += W) store(y + i, activated(load(gate + i), activation) * load(up + i));
    for (; i < n; i++) y[i] = narrow(activated(splat(widen(gate[i])), activation)[0] * widen(up[i]));
}

}  // namespace PARAGONE_LEVEL
