// What a decoder does between its products, one row or one head at a time.
#pragma once

#include <algorithm>
#include <cmath>

#include "functions.h"
#include "table.h"

namespace PARAGONE_LEVEL {

static void narrow_all(const float* x, long n, uint16_t* to) {
    long i = 0;
    for (; i + W <= n; i += W) store(to + i, load(x + i));
    for (; i < n; i++) to[i] = narrow(x[i]);
}

// Numbers as the words that products with bfloat16 take.
static void to_words(const float* x, long D, Word* to) {
    if (!PAIRS) {
        std::memcpy(to, x, D * sizeof *x);
        return;
    }
    uint16_t* halves = (uint16_t*)to;
    narrow_all(x, D, halves);
    if (D % 2) halves[D] = 0;
}

static void rms_norm(const float* x, const float* weight, float eps, long D, float* y) {
    VF squares = {};
    long d = 0;
    for (; d + W <= D; d += W) {
        VF v = load(x + d);
        squares = multiply_add(v, v, squares);
    }
    float total = sum(squares);
    for (long i = d; i < D; i++) total += x[i] * x[i];
    float scale = 1.0f / std::sqrt(total / D + eps);
    for (d = 0; d + W <= D; d += W) {
        VF v = load(x + d) * scale;
        store(y + d, weight ? v * load(weight + d) : v);
    }
    for (; d < D; d++) y[d] = weight ? x[d] * scale * weight[d] : x[d] * scale;
}

static void layer_norm(const float* x, const float* weight, const float* bias, float eps, long D, float* y) {
    VF sums = {}, squares = {};
    float total = 0, rest = 0;
    long d = 0;
    for (; d + W <= D; d += W) sums += load(x + d);
    for (total = sum(sums); d < D; d++) total += x[d];
    float mean = total / D;
    for (d = 0; d + W <= D; d += W) {
        VF v = load(x + d) - mean;
        squares = multiply_add(v, v, squares);
    }
    for (rest = sum(squares); d < D; d++) rest += (x[d] - mean) * (x[d] - mean);
    float scale = 1.0f / std::sqrt(rest / D + eps);
    for (d = 0; d + W <= D; d += W)
        store(y + d, multiply_add((load(x + d) - mean) * scale, load(weight + d), load(bias + d)));
    for (; d < D; d++) y[d] = (x[d] - mean) * scale * weight[d] + bias[d];
}

PARAGONE_INLINE void rotate_one(float* x, const float* cos, const float* sin, long dim, bool neighbours) {
    long half = dim / 2, e = 0;
    if (neighbours) {
        for (; e < half; e++) {
            float a = x[2 * e], b = x[2 * e + 1];
            x[2 * e] = a * cos[e] - b * sin[e];
            x[2 * e + 1] = b * cos[e] + a * sin[e];
        }
        return;
    }
    for (; e + W <= half; e += W) {
        VF a = load(x + e), b = load(x + half + e), c = load(cos + e), s = load(sin + e);
        store(x + e, multiply_add(a, c, -b * s));
        store(x + half + e, multiply_add(b, c, a * s));
    }
    for (; e < half; e++) {
        float a = x[e], b = x[half + e];
        x[e] = a * cos[e] - b * sin[e];
        x[half + e] = b * cos[e] + a * sin[e];
    }
}

// Vectors x, x + stride, ...
static void rotate(float* x, long count, long stride, const float* cos, const float* sin, long dim, bool neighbours) {
    for (long i = 0; i < count; i++) rotate_one(x + i * stride, cos, sin, dim, neighbours);
}

// SiLU: g / (1 + e^-g). GELU by tanh: g / (1 + e^-2u) with u = sqrt(2 / pi) (g + 0.044715 g^3).
PARAGONE_INLINE VF activated(VF g, Activation activation) {
    if (activation == GELU) {
        VF out;
        for (long i = 0; i < W; i++) out[i] = 0.5f * g[i] * std::erfc(g[i] * -0.70710678118654752f);
        return out;
    }
    VF u = activation == SILU ? g : g * (1.0f + g * g * 0.044715f) * 1.5957691216057308f;
    return g / (exp(-u) + 1.0f);
}

static void gated(const float* gate, const float* up, Activation activation, long n, float* y) {
    long i = 0;
    for (; i + W <= n; i += W) {
        VF v = activated(load(gate + i), activation);
        store(y + i, up ? v * load(up + i) : v);
    }
    for (; i < n; i++) {
        float v = activated(splat(gate[i]), activation)[0];
        y[i] = up ? v * up[i] : v;
    }
}

// e^(x - top), to the precision that a word of weights keeps; zero where x is -infinity.
PARAGONE_INLINE VF weight_of(VF x, VF top) {
#if defined(__AVX512BF16__) || PARAGONE_FIXED
    // 2^t as 2^n 2^f, n whole and f in [0, 1): four terms, fitted to the least relative error of 7.5e-5. What would be
    // no normal number is zero; what is not a number stays so.
    constexpr float LOG2 = 1.44269504088896341f;  // of e
    VF t = multiply_add(x, splat(LOG2), top * -LOG2);
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)t, _mm512_set1_ps(-125.0f), _CMP_NLT_UQ);
    VF f = (VF)_mm512_reduce_ps((__m512)t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    VF y = splat(0.0780245233f);
    for (float term : {0.226067159f, 0.695833537f, 0.999925219f}) y = multiply_add(y, f, splat(term));
    return (VF)_mm512_maskz_scalef_ps(normal, (__m512)y, (__m512)t);
#else
    return exp(x - top);
#endif
}

// e^((x - top) * factor), and their sum.
static double exponentials(const float* x, long n, float top, float factor, float* to) {
    constexpr long RUN = 64 * W;  // whose sums are made in float
    double total = 0;
    for (long run = 0; run < n; run += RUN) {
        VF sums = {};
        long i = run, end = std::min(n, run + RUN);
        for (; i + W <= end; i += W) {
            VF p = exp((load(x + i) - top) * factor);
            store(to + i, p);
            sums += p;
        }
        for (; i < end; i++) {
            to[i] = exp(splat((x[i] - top) * factor))[0];
            total += to[i];
        }
        total += sum(sums);
    }
    return total;
}

static void softcap(float* x, long n, float cap) { soften(x, n, cap); }

// Takes v's numbers, and where they are, that are larger than top's.
PARAGONE_INLINE void take_larger(VF v, VI place, VF& top, VI& at) {
    VI more = (VI)(v > top);
    top = more ? v : top;
    at = more ? place : at;
}

static long largest(const float* x, long n) {
    constexpr int CHAINS = 4;  // which else would wait for each other
    long first = 0, i = 0;
    bool strange = false;
    if (n >= CHAINS * W) {
        VF tops[CHAINS];
        VI at[CHAINS], odd = {}, lanes;
        for (int lane = 0; lane < W; lane++) lanes[lane] = lane;
        for (int c = 0; c < CHAINS; c++) {
            tops[c] = splat(-__builtin_inff());
            at[c] = lanes + (int)(c * W);
        }
        for (VI place = lanes; i + CHAINS * W <= n; i += CHAINS * W)
#pragma GCC unroll 4
            for (int c = 0; c < CHAINS; c++, place += (int)W) {
                VF v = load(x + i + c * W);
                odd |= (VI)(v != v);
                take_larger(v, place, tops[c], at[c]);
            }
        float most = largest_of(larger(larger(tops[0], tops[1]), larger(tops[2], tops[3])));
        VI before = VI{} + INT32_MIN;  // the places of the largest, negative: the first is the largest of them
        for (int c = 0; c < CHAINS; c++) before = larger(before, tops[c] == splat(most) ? -at[c] : before);
        first = -(long)largest_of(before);
        strange = largest_of(-odd) != 0;
    }
    for (; i < n; i++) {
        strange |= x[i] != x[i];
        if (x[i] > x[first]) first = i;
    }
    return strange || !n ? -1 : first;
}

}  // namespace PARAGONE_LEVEL
