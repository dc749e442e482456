// What the attention of many queries multiplies, in words: pairs of bfloat16, or floats.
#pragma once

#include "panels.h"
#include "rowwise.h"
#include "slot_tiles.h"

#if !PARAGONE_FIXED

namespace PARAGONE_LEVEL {

constexpr long ROWS_AT_ONCE = PARAGONE_TILES ? 64 : 48;  // queries whose scores are made at once, and stay near
constexpr long SLOT_STEP = PANEL_ROWS;  // whole runs of slots are looked at

// A query's numbers as words; the unit is for numbers that have one.
PARAGONE_INLINE void query_words(const float* q, long E, Word* to, float*) { to_words(q, E, to); }

// Scores of `rows` queries with slots [from, upto) of a tile.
static void make_scores(const Word* tile, long E, long from, long upto, const Word* queries, const float*, long rows,
                        float* scores, long stride) {
    long words = slot_words(E);
    Out products{scores, stride, nullptr, false};
    for (long s = from; s < upto; s += PANEL_ROWS)
        panels_by_tokens<TILE_PANELS>(tile + s * words, PANEL * words, words, queries, words, rows, products, s,
                                      PANEL_ROWS);
}

// Scores with slots [from, upto) become weights. False, and the total as it was, where they are too large to be added
// up: then `top` was too small.
static bool weigh(const float* scores, long from, long upto, float top, const Word*, long, float* total, Word* weights,
                  float*) {
    VF added = {};
    for (long s = from; s < upto; s += 2 * W) {
        VF one = weight_of(load(scores + s), splat(top)), other = weight_of(load(scores + s + W), splat(top));
        if constexpr (PAIRS) {
            store((uint16_t*)weights + s, one, other);
        } else {
            store((float*)weights + s, one);
            store((float*)weights + s + W, other);
        }
        added += one;
        added += other;
    }
    if (!all_below(added, MOST_WEIGHT)) return false;
    store(total, load(total) + added);
    return true;
}

// Adds the values of slots [from, upto), weighted, to sums of E numbers for each row.
static void add_values(const Word* tile, long E, long from, long upto, const Word* weights, const float*, long rows,
                       float* sums) {
    long words = slot_words(TILE_SLOTS), begin = from / SLOT_NUMBERS;
    Out out{sums, E, nullptr, true};
    for (long e = 0; e < E; e += PANEL_ROWS) {
        auto run = E - e > PANEL ? panels_by_tokens<TILE_PANELS> : panels_by_tokens<1>;
        run(tile + value_words_at(E) + e * words + begin * PANEL, PANEL * words, (upto - from) / SLOT_NUMBERS,
            weights + begin, words, rows, out, e, std::min(PANEL_ROWS, E - e), false, nullptr, nullptr);
    }
}

}  // namespace PARAGONE_LEVEL

#endif
