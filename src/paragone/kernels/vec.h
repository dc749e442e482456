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

// Where pairs of bfloat16 are none, but pairs of whole numbers of 16 bits are single instructions, which make twice as
// many products as floats do, prompts' attention is made of those (flash_fixed.h).
#if defined(__AVX512VNNI__) && !defined(__AVX512BF16__)
#define PARAGONE_FIXED 1
#else
#define PARAGONE_FIXED 0
#endif
constexpr bool FIXED = PARAGONE_FIXED;
constexpr long SLOT_NUMBERS = PAIRS || FIXED ? 2 : 1;  // of a word of keys or values

constexpr long slot_words(long D) { return (D + SLOT_NUMBERS - 1) / SLOT_NUMBERS; }

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

#if PARAGONE_LANES == 16
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

}  // namespace PARAGONE_LEVEL
