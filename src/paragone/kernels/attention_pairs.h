// Attention of one query token where one instruction multiplies pairs of bfloat16 numbers: queries and weights are
// rounded to them, as keys and values are.
#pragma once

#include "rowwise.h"
#include "slots.h"

namespace PARAGONE_LEVEL {

#if defined(__AVX512BF16__)
constexpr long PADDED = 32;  // numbers that a row of a query's words is filled up to

// The first `count` of 32 numbers, and zeros.
PARAGONE_INLINE VI some_pairs(const uint16_t* from, long count) {
    __mmask32 there = count >= 32 ? 0xffffffffu : (1u << count) - 1;
    return (VI)_mm512_maskz_loadu_epi16(there, from);
}

// Scores of G queries, words in rows of `words`, with N slots.
template <int G, int N>
PARAGONE_INLINE void dots_of_pairs(const Word* q, long words, const uint16_t* const (&keys)[N], long E, float* scores,
                                   long stride) {
    VF sums[G][N] = {};
    for (long e = 0; e < E; e += 32) {
        VI key[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) key[n] = some_pairs(keys[n] + e, E - e);
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
            VI query = load_words(q + g * words + e / 2);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sums[g][n] = dot_pairs(sums[g][n], key[n], query);
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
        if constexpr (N == SLOTS) sum4(sums[g][0], sums[g][1], sums[g][2], sums[g][3], scores + g * stride);
        else scores[g * stride] = sum(sums[g][0]);
}

// Sums of up to N times 32 numbers of the values, from `e` on, weighted for G queries.
template <int G, int N>
static void mix_pairs(const float* weights, long stride, const Slots& slots, long first, long S, long E, long e,
                      float* out) {
    VF sums[G][2 * N] = {};
    Reading reading(slots, first, S);
    for (long s = 0, number = reading.count(); s < S; number++) {
        Run<uint16_t> run = reading.run<uint16_t>(slots.values, first + s, S - s, number);
        for (long i = 0; i < run.count; i += 2) {
            run.fetch(i, std::min(2L, run.count - i));
            VI parts[2 * N];
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) {
                long at = e + n * 32;
                VI one = some_pairs(run[i] + at, E - at);
                VI other = i + 1 < run.count ? some_pairs(run[i + 1] + at, E - at) : VI{};
                parts[2 * n] = interleave_halves(one, other, false);
                parts[2 * n + 1] = interleave_halves(one, other, true);
            }
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) {
                VI both = splat_word((const uint16_t*)(weights + g * stride) + s + i);
#pragma GCC unroll 4
                for (int n = 0; n < 2 * N; n++) sums[g][n] = dot_pairs(sums[g][n], parts[n], both);
            }
        }
        s += run.count;
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 4
        for (int n = 0; n < 2 * N; n++) {
            long left = E - e - n * W;
            __mmask16 there = left >= W ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
            _mm512_mask_storeu_ps(out + g * E + e + n * W, there, (__m512)sums[g][n]);
        }
}

template <int G>
static void scores_of_pairs(const float* q, const Slots& slots, long first, long S, long E, float* scores,
                            long stride) {
    long padded = (E + PADDED - 1) / PADDED * PADDED;
    uint16_t* words = (uint16_t*)(scores + G * stride);
    for (long g = 0; g < G; g++) {
        narrow_all(q + g * E, E, words + g * padded);
        std::fill(words + g * padded + E, words + (g + 1) * padded, 0);
    }
    keys_in_turn<uint16_t>(slots, first, S, [&]<int N>(const uint16_t* const (&keys)[N], long s) {
        dots_of_pairs<G, N>((const Word*)words, padded / 2, keys, E, scores + s, stride);
    });
}

template <int G>
static void values_of_pairs(const float* weights, long stride, const Slots& slots, long first, long S, long E,
                            float* out) {
    long e = 0;
    for (; e + 32 < E; e += 64) mix_pairs<G, 2>(weights, stride, slots, first, S, E, e, out);
    for (; e < E; e += 32) mix_pairs<G, 1>(weights, stride, slots, first, S, E, e, out);
}

// Turns `stride` scores into e^(score - top), in bfloat16 from where the row begins; returns their sum before they are
// rounded.
static float weights_of_pairs(float* row, long stride, float top) {
    VF sums = {};
    for (long s = 0; s < stride; s += W) {
        VF weight = weight_of(load(row + s), splat(top));
        store((uint16_t*)row + s, weight);
        sums += weight;
    }
    ((uint16_t*)row)[stride] = 0;  // beside the last one, where slots are taken in twos
    return sum(sums);
}
#endif

}  // namespace PARAGONE_LEVEL
