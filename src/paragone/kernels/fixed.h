// Rows of numbers as whole numbers of 16 bits, in units of a row's own, and their products with such rows in panels:
// pairs of neighbours, a lane for each row of the panel.
//
// A row's largest number takes 12 bits in panels and 13 beside them, and its sign: a number is then as near as bfloat16
// has it where it is a thirty-second of the row's largest or more, and the others count for little beside that. Sums are
// made of whole numbers alone as long as they fit into 32 bits, so that it does not matter in which order.
#pragma once

#include "each.h"
#include "finish.h"
#include "functions.h"

#if PARAGONE_FIXED

namespace PARAGONE_LEVEL {

constexpr int PANEL_MOST = 4095, ROW_MOST = 8191;
constexpr long RUN_WORDS = 32;  // whose sums fit
static_assert(2 * RUN_WORDS * PANEL_MOST * ROW_MOST <= INT32_MAX);
constexpr int FIXED_TILE = 12;  // rows beside two panels: as many sums as fit into the registers

// sum + the two products, in each lane, of the whole numbers of w and x.
PARAGONE_INLINE VI dot_fixed(VI sum, VI w, VI x) {
    return (VI)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}

// What a number of this size is `most` times; and what numbers are to be multiplied with to become whole ones.
PARAGONE_INLINE float unit_of(float largest, int most) { return largest / (float)most; }
PARAGONE_INLINE float inverse_of(float largest, int most) {
    return largest <= 0x1p-100f ? 0.0f : (float)most / largest;  // which would be infinite
}

// A row of floats, or of bfloat16, with the largest of them `most`, to whole numbers; returns their unit.
template <class T> static float to_fixed(const T* from, long E, int most, uint16_t* to) {
    VI tops = {};
    T rest[W] = {};
    std::memcpy(rest, from + E / W * W, E % W * sizeof(T));
    // Sizes compare as whole numbers do, and what is not a number is the largest.
    for (long e = 0; e < E; e += W) tops = larger(tops, (VI)load(e + W <= E ? from + e : rest) & 0x7fffffff);
    float largest = as_float(largest_of(tops)), inverse = inverse_of(largest, most);
    for (long e = 0; e < E; e += W) {
        VF number = multiply_add(load(e + W <= E ? from + e : rest), inverse, splat(WHOLE));
        VS whole = __builtin_convertvector((VI)number - WHOLE_BITS, VS);
        std::memcpy(to + e, &whole, std::min(W, E - e) * sizeof *to);
    }
    return unit_of(largest, most);
}

// P panels of `words` words, `stride` words apart, by M rows.
template <int P, int M>
PARAGONE_INLINE void fixed_tile(const Word* panel, long stride, long words, const Word* x, long x_stride,
                                VF (&sums)[M][P]) {
    const Word* at[addresses(M)];
    share_addresses<M>(x, x_stride, at);
    for (long from = 0; from < words; from += RUN_WORDS) {
        VI whole[M][P] = {};
        for (long j = from, upto = std::min(words, from + RUN_WORDS); j < upto; j++) {
            VI w[P];
#pragma GCC unroll 2
            for (int q = 0; q < P; q++) w[q] = load_words(panel + q * stride + j * PANEL);
#pragma GCC unroll 12
            for (int i = 0; i < M; i++) {
                VI both = splat_word(shared_address(at, i, x_stride) + j);
#pragma GCC unroll 2
                for (int q = 0; q < P; q++) whole[i][q] = dot_fixed(whole[i][q], w[q], both);
            }
        }
#pragma GCC unroll 12
        for (int i = 0; i < M; i++)
#pragma GCC unroll 2
            for (int q = 0; q < P; q++) {
                VF sum = __builtin_convertvector(whole[i][q], VF);
                sums[i][q] = from ? sums[i][q] + sum : sum;
            }
    }
}

}  // namespace PARAGONE_LEVEL

#endif
