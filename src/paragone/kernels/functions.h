// What all lanes of a vector give together, and functions of each of them.
#pragma once

#include "vec.h"

namespace PARAGONE_LEVEL {

// b where one of the two is not a number.
PARAGONE_INLINE VF larger(VF a, VF b) {
#if PARAGONE_LANES == 16  // compilers make three instructions of what is one
    return (VF)_mm512_max_ps((__m512)a, (__m512)b);
#elif PARAGONE_LANES == 8
    return (VF)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

PARAGONE_INLINE VF smaller(VF a, VF b) {
#if PARAGONE_LANES == 16
    return (VF)_mm512_min_ps((__m512)a, (__m512)b);
#elif PARAGONE_LANES == 8
    return (VF)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

PARAGONE_INLINE VI larger(VI a, VI b) {
#if PARAGONE_LANES == 16
    return (VI)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif PARAGONE_LANES == 8
    return (VI)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    return a > b ? a : b;
#endif
}

PARAGONE_INLINE float sum(VF v) {
#if PARAGONE_LANES == 16
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
#elif PARAGONE_LANES == 8
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
#endif
    return (v[0] + v[1]) + (v[2] + v[3]);
}

PARAGONE_INLINE int32_t largest_of(VI v) {
#if PARAGONE_LANES == 16
    return _mm512_reduce_max_epi32((__m512i)v);
#else
#if PARAGONE_LANES == 8
    v = larger(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
#endif
    int32_t a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
#endif
}

PARAGONE_INLINE float largest_of(VF v) {
#if PARAGONE_LANES == 16
    v = larger(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = larger(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
#elif PARAGONE_LANES == 8
    v = larger(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
#endif
    float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}

// The sums of four vectors at once, for far fewer steps than one after another.
PARAGONE_INLINE void sum4(VF a, VF b, VF c, VF d, float* out) {
#if PARAGONE_LANES == 16
#define PARAGONE_LOW 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define PARAGONE_HIGH 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define PARAGONE_LOW2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define PARAGONE_HIGH2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#elif PARAGONE_LANES == 8
#define PARAGONE_LOW 0, 8, 1, 9, 4, 12, 5, 13
#define PARAGONE_HIGH 2, 10, 3, 11, 6, 14, 7, 15
#define PARAGONE_LOW2 0, 1, 8, 9, 4, 5, 12, 13
#define PARAGONE_HIGH2 2, 3, 10, 11, 6, 7, 14, 15
#else
#define PARAGONE_LOW 0, 4, 1, 5
#define PARAGONE_HIGH 2, 6, 3, 7
#define PARAGONE_LOW2 0, 1, 4, 5
#define PARAGONE_HIGH2 2, 3, 6, 7
#endif
    VF ab = __builtin_shufflevector(a, b, PARAGONE_LOW) + __builtin_shufflevector(a, b, PARAGONE_HIGH);
    VF cd = __builtin_shufflevector(c, d, PARAGONE_LOW) + __builtin_shufflevector(c, d, PARAGONE_HIGH);
    VF all = __builtin_shufflevector(ab, cd, PARAGONE_LOW2) + __builtin_shufflevector(ab, cd, PARAGONE_HIGH2);
#if PARAGONE_LANES == 16
    all += __builtin_shufflevector(all, all, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    all += __builtin_shufflevector(all, all, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
#elif PARAGONE_LANES == 8
    all += __builtin_shufflevector(all, all, 4, 5, 6, 7, 0, 1, 2, 3);
#endif
    std::memcpy(out, &all, 16);
}

// e^x to about one unit in the last place of float: 2^k times a polynomial on [-ln 2 / 2, ln 2 / 2], fitted to the
// least relative error, 9e-8. Zero from -87.7 down, as at 88.3 from there up; what is not a number stays so.
PARAGONE_INLINE VF exp(VF x) {
    constexpr float BIASED = WHOLE + 127;  // its low bits are then the exponent of 2^k; 0 makes a zero of it
    x = smaller(splat(88.3f), larger(splat(-88.1f), x));
    VF shifted = multiply_add(x, 1.44269504088896341f, splat(BIASED));
    VF k = shifted - BIASED;
    x = multiply_add(k, -0.693359375f, x);
    x = multiply_add(k, 2.12194440e-4f, x);
    VF y = splat(8.29031505e-3f);
    for (float term : {4.18979302e-2f, 1.66676357e-1f, 4.99991506e-1f, 9.99999702e-1f, 1.0f})
        y = multiply_add(y, x, splat(term));
    return y * (VF)((VU)shifted << 23);
}

// False, too, where one is not a number.
PARAGONE_INLINE bool all_below(VF x, float limit) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(limit), _CMP_LT_OQ) == 0xffff;
#else
    return largest_of(x) < limit;
#endif
}

PARAGONE_INLINE VF tanh(VF x) { return 1.0f - 2.0f / (exp(x * 2.0f) + 1.0f); }

// x[i] = cap * tanh(x[i] / cap).
PARAGONE_INLINE void soften(float* x, long n, float cap) {
    long i = 0;
    for (; i + W <= n; i += W) store(x + i, tanh(load(x + i) / cap) * cap);
    if (i == n) return;
    float rest[W] = {};
    std::memcpy(rest, x + i, (n - i) * sizeof *x);
    store(rest, tanh(load(rest) / cap) * cap);
    std::memcpy(x + i, rest, (n - i) * sizeof *x);
}

}  // namespace PARAGONE_LEVEL
