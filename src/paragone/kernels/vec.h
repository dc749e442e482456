// Vectors of the widest registers that this file is compiled for, and the number formats that they load.
//
// GCC's and Clang's vector types: one source becomes AVX-512, AVX2, SSE or NEON by compiler flags alone.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX512F__)
#define PARAGONE_LANES 16
#elif defined(__AVX2__)
#define PARAGONE_LANES 8
#else
#define PARAGONE_LANES 4
#endif
#if PARAGONE_LANES > 4
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_FEATURE_FMA) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#if !defined(PARAGONE_TILES)
#define PARAGONE_TILES 0
#endif
#define PARAGONE_MEMBER inline __attribute__((always_inline))
#define PARAGONE_INLINE static PARAGONE_MEMBER

namespace PARAGONE_LEVEL {

constexpr long W = PARAGONE_LANES;
#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;  // products of bfloat16 pairs are single instructions
#else
constexpr bool PAIRS = false;
#endif
constexpr long PANEL = 16;    // rows of a weight that lie side by side, a lane for each
constexpr int V = PANEL / W;  // registers that they take
constexpr long NUMBERS = PAIRS ? 2 : 1;  // of a word
constexpr long STEP_NUMBERS = NUMBERS * W;

constexpr long words_of(long D) { return (D + NUMBERS - 1) / NUMBERS; }

typedef float VF __attribute__((vector_size(W * 4)));
typedef int32_t VI __attribute__((vector_size(W * 4)));
typedef uint32_t VU __attribute__((vector_size(W * 4)));
typedef uint16_t VH __attribute__((vector_size(W * 2)));
typedef int16_t VS __attribute__((vector_size(W * 2)));
typedef int16_t VT __attribute__((vector_size(W * 4)));  // two in each lane
typedef int8_t VB __attribute__((vector_size(W)));

PARAGONE_INLINE VF splat(float x) { return x - VF{}; }

PARAGONE_INLINE VF load(const float* p) {
    VF v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

PARAGONE_INLINE void store(float* p, VF v) { std::memcpy(p, &v, sizeof v); }

// bfloat16 is the upper half of a float.
PARAGONE_INLINE VF load(const uint16_t* p) {
#if PARAGONE_LANES == 16  // compilers make five instructions of what is one
    return (VF)((VU)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)) << 16);
#elif PARAGONE_LANES == 8
    return (VF)((VU)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)) << 16);
#else
    VH h;
    std::memcpy(&h, p, sizeof h);
    return (VF)(__builtin_convertvector(h, VU) << 16);
#endif
}

// a * b + c, rounded once where there is an instruction for it. It is said wherever it is meant, and compilers are told
// to make it of nothing else: which sums they choose differs from one of their versions to the next, and from one
// instance of a template to another, so that a row's result would depend on how many rows there are.
PARAGONE_INLINE VF multiply_add(VF a, VF b, VF c) {
#if PARAGONE_LANES == 16
    return (VF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif PARAGONE_LANES == 8
    return (VF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA) && defined(__ARM_NEON)
    return (VF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

PARAGONE_INLINE VF multiply_add(VF a, float b, VF c) { return multiply_add(a, splat(b), c); }

PARAGONE_INLINE float widen(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

// To the nearest bfloat16, ties to even, as PyTorch rounds; what is not a number stays so.
PARAGONE_INLINE uint16_t narrow(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    return f != f ? 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

PARAGONE_INLINE void store(uint16_t* p, VF v) {
#if defined(__AVX512BF16__)
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);  // numbers below 2^-126 become zero
    std::memcpy(p, &rounded, sizeof rounded);
#else
    VU u = (VU)v;
    VU rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    VU quiet = (VU)(v != v);
    rounded = (rounded & ~quiet) | (quiet & 0x7fc0);
    VH h = __builtin_convertvector(rounded, VH);
    std::memcpy(p, &h, sizeof h);
#endif
}

// Two at once, which takes less than one after the other.
PARAGONE_INLINE void store(uint16_t* p, VF v, VF next) {
#if defined(__AVX512BF16__)
    __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)next, (__m512)v);
    std::memcpy(p, &rounded, sizeof rounded);
#else
    store(p, v);
    store(p + W, next);
#endif
}

PARAGONE_INLINE VF load(const int8_t* p) {
#if PARAGONE_LANES == 16
    return (VF)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif PARAGONE_LANES == 8
    return (VF)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    VB b;
    std::memcpy(&b, p, sizeof b);
    // One step at a time: compilers make single instructions of doublings only.
    return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(b, VS), VI), VF);
#endif
}

// float16, not a number and infinity left out.
PARAGONE_INLINE VF load_half(const uint16_t* p) {
#if PARAGONE_LANES == 16
    return (VF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif PARAGONE_LANES == 8
    return (VF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    VH h;
    std::memcpy(&h, p, sizeof h);
    VU u = __builtin_convertvector(h, VU);
    VF size = (VF)((u & 0x7fff) << 13) * 0x1p112f;  // the exponents differ by 112
    return (VF)((VU)size | (u & 0x8000) << 16);
#endif
}

PARAGONE_INLINE float as_float(int32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

// Adding 1.5 * 2^23 rounds to a whole number, which is then the low bits.
constexpr float WHOLE = 12582912.0f;
constexpr int32_t WHOLE_BITS = 0x4b400000;

PARAGONE_INLINE VI load_words(const void* p) {
    VI v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

PARAGONE_INLINE VI splat_word(const void* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof word);
    return word - VI{};
}

// sum + the two products, in each lane, of the bfloat16 numbers of w and x.
PARAGONE_INLINE VF dot_pairs(VF sum, VI w, VI x) {
#if defined(__AVX512BF16__)
    return (VF)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
#else
    sum = multiply_add((VF)((VU)w << 16), (VF)((VU)x << 16), sum);
    return multiply_add((VF)((VU)w & 0xffff0000u), (VF)((VU)x & 0xffff0000u), sum);
#endif
}

#if defined(__AVX512BF16__)
// Numbers of 16 bits of a and b in turn, of the first sixteen or of the last.
PARAGONE_INLINE VI interleave_halves(VI a, VI b, bool last) {
    alignas(64) static constexpr int16_t ORDER[2][32] = {
        {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
         8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
        {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
         24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
    return (VI)_mm512_permutex2var_epi16((__m512i)a, _mm512_load_si512(ORDER[last]), (__m512i)b);
}
#endif

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
