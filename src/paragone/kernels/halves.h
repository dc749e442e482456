// Thirty-two numbers of float16 (AVX512-FP16), of which weights in words are made: products of codes and scales that
// are both such numbers. Where the compiler makes no instructions of them they are computed in float32, slowly.
#pragma once

#include "packed.h"

#if PARAGONE_TILES

namespace PARAGONE_LEVEL {

typedef __m512i Halves;

#if defined(__AVX512FP16__)
PARAGONE_INLINE Halves product(Halves a, Halves b) { return (Halves)_mm512_mul_ph((__m512h)a, (__m512h)b); }
PARAGONE_INLINE Halves difference(Halves a, Halves b) { return (Halves)_mm512_sub_ph((__m512h)a, (__m512h)b); }
PARAGONE_INLINE Halves product_plus(Halves a, Halves b, Halves c) {
    return (Halves)_mm512_fmadd_ph((__m512h)a, (__m512h)b, (__m512h)c);
}
#else
// Products of two are exact in float32, so that each is rounded once; where one is added to them, twice.
template <class Call> PARAGONE_INLINE Halves in_floats(Call call) {
    Halves out{};
    out = _mm512_inserti64x4(out, _mm512_cvtps_ph((__m512)call(0), _MM_FROUND_TO_NEAREST_INT), 0);
    return _mm512_inserti64x4(out, _mm512_cvtps_ph((__m512)call(1), _MM_FROUND_TO_NEAREST_INT), 1);
}
PARAGONE_INLINE VF floats_of(Halves a, int part) {
    return (VF)_mm512_cvtph_ps(part ? _mm512_extracti64x4_epi64(a, 1) : _mm512_castsi512_si256(a));
}
PARAGONE_INLINE Halves product(Halves a, Halves b) {
    return in_floats([&](int part) { return floats_of(a, part) * floats_of(b, part); });
}
PARAGONE_INLINE Halves difference(Halves a, Halves b) {
    return in_floats([&](int part) { return floats_of(a, part) - floats_of(b, part); });
}
PARAGONE_INLINE Halves product_plus(Halves a, Halves b, Halves c) {
    return in_floats([&](int part) { return floats_of(a, part) * floats_of(b, part) + floats_of(c, part); });
}
#endif

PARAGONE_INLINE Halves splat_half(uint16_t bits) { return _mm512_set1_epi16((short)bits); }

// 2^power, from 2^-14 to 2^15.
constexpr uint16_t half_power(int power) { return (uint16_t)((power + 15) << 10); }

// Each of sixteen numbers twice, as the two that a lane's word holds.
PARAGONE_INLINE Halves twice(const uint16_t* from) {
    Halves each = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
    return _mm512_or_si512(each, _mm512_slli_epi32(each, 16));
}

// What a bfloat16 number of the same bits, moved three places, is of a float16 number: exponents count from elsewhere.
constexpr int HALF_TO_WORD = 15 - 127;

// Rounded to the eight digits of bfloat16, ties to the larger: its words, 2^HALF_TO_WORD times the numbers. Those below
// 2^-14 count for nothing in products.
PARAGONE_INLINE Halves to_word_halves(Halves numbers) {
    Halves moved = _mm512_mulhrs_epi16(numbers, _mm512_set1_epi16(0x1000));  // 2^-3, to the nearest; signs spread
    return _mm512_and_si512(moved, splat_half(0x8fff));
}

}  // namespace PARAGONE_LEVEL

#endif
