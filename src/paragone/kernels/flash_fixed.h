// What the attention of many queries multiplies, in whole numbers of 16 bits (fixed.h): each query, key and value has a
// unit of its own, and so have the weights of a query in a tile.
#pragma once

#include "fixed.h"
#include "rowwise.h"
#include "slot_tiles.h"

#if PARAGONE_FIXED

namespace PARAGONE_LEVEL {

constexpr long ROWS_AT_ONCE = 4 * FIXED_TILE;   // queries whose scores are made at once, and stay near
constexpr long SLOT_STEP = 2 * RUN_WORDS;  // whole runs of slots are looked at: sums are then the same for any span
constexpr int PANELS_AT_ONCE = 2;

PARAGONE_INLINE void query_words(const float* q, long E, Word* to, float* unit) {
    to[slot_words(E) - 1] = 0;
    *unit = to_fixed(q, E, ROW_MOST, (uint16_t*)to);
}

// Scores of `rows` queries with slots [from, upto) of a tile.
static void make_scores(const Word* tile, long E, long from, long upto, const Word* queries, const float* units,
                        long rows, float* scores, long stride) {
    constexpr int P = PANELS_AT_ONCE;
    long words = slot_words(E);
    const float* key_units = (const float*)(tile + key_units_at(E));
    for (long s = from; s < upto; s += P * PANEL)
        tiles_of<FIXED_TILE>(rows, [&]<int M>(long m) {
            VF sums[M][P];
            fixed_tile<P, M>(tile + s * words, PANEL * words, words, queries + m * words, words, sums);
#pragma GCC unroll 12
            for (int i = 0; i < M; i++)
#pragma GCC unroll 2
                for (int q = 0; q < P; q++)
                    store(scores + (m + i) * stride + s + q * PANEL,
                          sums[i][q] * (load(key_units + s + q * PANEL) * units[m + i]));
        });
}

// Scores with slots [from, upto) become weights, which have the values' units in them, and a unit. False, and the total
// as it was, where they are too large to be added up: then `top` was too small.
static bool weigh(const float* scores, long from, long upto, float top, const Word* tile, long E, float* total,
                  Word* weights, float* unit) {
    const float* value_units = (const float*)(tile + value_units_at(E));
    alignas(64) float shares[TILE_SLOTS];
    VF added = {};
    VI tops[2] = {};
    for (long s = from; s < upto; s += 2 * W)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            long at = s + i * W;
            VF weight = weight_of(load(scores + at), splat(top)), share = weight * load(value_units + at);
            tops[i] = larger(tops[i], (VI)share & 0x7fffffff);
            store(shares + at, share);
            added += weight;
        }
    if (!all_below(added, MOST_WEIGHT)) return false;
    store(total, load(total) + added);
    float largest = as_float(largest_of(larger(tops[0], tops[1]))), inverse = inverse_of(largest, ROW_MOST);
    *unit = unit_of(largest, ROW_MOST);
    for (long s = from; s < upto; s += 2 * W) {
        __m512i one = _mm512_cvtps_epi32((__m512)(load(shares + s) * inverse));
        __m512i other = _mm512_cvtps_epi32((__m512)(load(shares + s + W) * inverse));
        _mm512_storeu_si512(weights + s / 2, _mm512_packs_epi32(one, other));  // in the order of slot_of
    }
    return true;
}

// Adds the values of slots [from, upto), weighted, to sums of E numbers for each row.
static void add_values(const Word* tile, long E, long from, long upto, const Word* weights, const float* units,
                       long rows, float* sums) {
    long words = slot_words(TILE_SLOTS), begin = from / SLOT_NUMBERS, count = (upto - from) / SLOT_NUMBERS;
    Out out{sums, E, nullptr, true};
    auto panels = [&]<int P>(long e) {
        const Word* panel = tile + value_words_at(E) + e * words + begin * PANEL;
        tiles_of<FIXED_TILE>(rows, [&]<int M>(long m) {
            VF own[M][P];
            fixed_tile<P, M>(panel, PANEL * words, count, weights + m * words + begin, words, own);
#pragma GCC unroll 12
            for (int i = 0; i < M; i++) {
#pragma GCC unroll 2
                for (int q = 0; q < P; q++) own[i][q] *= units[m + i];
                finish(out, m + i, e, std::min(P * PANEL, E - e), own[i]);
            }
        });
    };
    long e = 0;
    for (; E - e > PANEL; e += PANELS_AT_ONCE * PANEL) panels.template operator()<PANELS_AT_ONCE>(e);
    if (e < E) panels.template operator()<1>(e);
}

}  // namespace PARAGONE_LEVEL

#endif
