// Bytes of registers: what codes and their products are made of.
#pragma once

#include "vec.h"

namespace PARAGONE_LEVEL {

// Products of bytes: newer instructions add four up, older ones two, in 16 bits.
#if PARAGONE_LANES > 4 && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
constexpr bool QUADS = false;
#else
constexpr bool QUADS = true;
#endif

// The low bytes of the lanes.
PARAGONE_INLINE void store_bytes(int8_t* p, VI v) {
    VB bytes = __builtin_convertvector(v, VB);
    std::memcpy(p, &bytes, sizeof bytes);
}

// The same of 32 lanes, which are numbers from -128 to 127, or it does not matter what is stored.
PARAGONE_INLINE void store_bytes(int8_t* p, const VI (&v)[32 / W]) {
#if PARAGONE_LANES == 8  // compilers narrow one register at a time
    __m256i low = _mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]);
    __m256i high = _mm256_packs_epi32((__m256i)v[2], (__m256i)v[3]);
    VI mixed = (VI)_mm256_packs_epi16(low, high);  // by halves of registers
    mixed = __builtin_shufflevector(mixed, mixed, 0, 4, 1, 5, 2, 6, 3, 7);
    std::memcpy(p, &mixed, sizeof mixed);
#else
    for (int i = 0; i < 32 / W; i++) store_bytes(p + i * W, v[i]);
#endif
}

// In each lane, products of the numbers of 16 bits of w and x, added.
PARAGONE_INLINE VI dot_halves(VT w, VT x) {
#if PARAGONE_LANES == 16
    return (VI)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#elif PARAGONE_LANES == 8
    return (VI)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#elif defined(__SSE2__)
    return (VI)_mm_madd_epi16((__m128i)w, (__m128i)x);
#else
    VI a = (VI)w, b = (VI)x;
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// sum + the four products, in each lane, of the unsigned bytes of w and the signed bytes of x.
PARAGONE_INLINE VI dot_quads(VI sum, VI w, VI x) {
#if defined(__AVX512VNNI__)
    return (VI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVXVNNI__)
    return (VI)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#else
    VT even = (VT)(w & 0x00ff00ff), odd = (VT)((VU)w >> 8 & 0x00ff00ff);
    return sum + dot_halves(even, (VT)x << 8 >> 8) + dot_halves(odd, (VT)x >> 8);
#endif
}

#if PARAGONE_LANES > 4
// In 16 bits, products of the unsigned bytes of w and the signed bytes of x, neighbours added: they have to fit.
PARAGONE_INLINE VT dot_bytes(VI w, VI x) {
#if PARAGONE_LANES == 16
    return (VT)_mm512_maddubs_epi16((__m512i)w, (__m512i)x);
#else
    return (VT)_mm256_maddubs_epi16((__m256i)w, (__m256i)x);
#endif
}

// Of bytes; that of -128 is 128, which unsigned bytes hold.
PARAGONE_INLINE VI sizes_of_bytes(VI v) {
#if PARAGONE_LANES == 16
    return (VI)_mm512_abs_epi8((__m512i)v);
#else
    return (VI)_mm256_abs_epi8((__m256i)v);
#endif
}

// The bytes of v, those with the sign turned whose byte of `signs` is negative. Where that is zero, any.
PARAGONE_INLINE VI with_signs(VI v, VI signs) {
#if PARAGONE_LANES == 16
    return (VI)_mm512_mask_sub_epi8((__m512i)v, _mm512_movepi8_mask((__m512i)signs), __m512i{}, (__m512i)v);
#else
    return (VI)_mm256_sign_epi8((__m256i)v, (__m256i)signs);
#endif
}

// What compilers take as computed here: else they gather many products before they add them up, for which there are too
// few registers.
template <class T> PARAGONE_INLINE T in_turn(T v) {
    asm("" : "+x"(v));
    return v;
}

#endif

// For each byte, which is below 16, one of sixteen others.
#if PARAGONE_LANES > 4 || defined(__aarch64__)
PARAGONE_INLINE
#else  // a call costs less than sixteen loads, each time, to compile
static __attribute__((noinline))
#endif
VI look_up(const uint8_t* table, VI bytes) {
#if PARAGONE_LANES == 16
    __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
    return (VI)_mm512_shuffle_epi8(all, (__m512i)bytes);
#elif PARAGONE_LANES == 8
    __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return (VI)_mm256_shuffle_epi8(all, (__m256i)bytes);
#elif defined(__aarch64__)
    return (VI)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)bytes);
#else
    uint8_t each[W * 4];
    std::memcpy(each, &bytes, sizeof each);
    for (uint8_t& byte : each) byte = table[byte];
    return load_words(each);
#endif
}

// Bytes of a and b in turn, of each 16 the first eight or the last.
PARAGONE_INLINE VI interleave_bytes(VI a, VI b, bool last) {
#if PARAGONE_LANES == 16
    return (VI)(last ? _mm512_unpackhi_epi8((__m512i)a, (__m512i)b) : _mm512_unpacklo_epi8((__m512i)a, (__m512i)b));
#elif PARAGONE_LANES == 8
    return (VI)(last ? _mm256_unpackhi_epi8((__m256i)a, (__m256i)b) : _mm256_unpacklo_epi8((__m256i)a, (__m256i)b));
#else
    typedef uint8_t Bytes __attribute__((vector_size(W * 4)));
    Bytes c = (Bytes)a, d = (Bytes)b;
    return last ? (VI)__builtin_shufflevector(c, d, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                : (VI)__builtin_shufflevector(c, d, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#endif
}

}  // namespace PARAGONE_LEVEL
