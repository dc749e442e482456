// Attention of many queries at once, a tile of slots at a time with the softmax carried along (arXiv 2205.14135).
//
// Tiles begin at multiples of their size, and slots that a query does not see add nothing to it, so that what comes
// out for a query does not depend on the queries beside it.
#pragma once

#include "coming.h"
#include "flash_fixed.h"
#include "flash_words.h"

namespace PARAGONE_LEVEL {

constexpr long SCORES = TILE_SLOTS + PANEL;  // from row to row: whole kilobytes would share few lines of the cache

// What the work on `rows` queries of width E needs, one after the other.
struct Room {
    Word *queries, *tile, *weights;
    uint16_t* numbers;
    float *scores, *sums, *largest, *totals, *query_units, *weight_units;

    static long lay_out(Room* room, uint8_t* from, long rows, long E) {
        long at = 0;
        auto take = [&](auto*& pointer, long count) {
            pointer = (std::remove_reference_t<decltype(pointer)>)(from + at);
            at += (count * sizeof *pointer + 63) / 64 * 64;
        };
        take(room->queries, rows * slot_words(E));
        take(room->tile, tile_words(E));
        take(room->weights, ROWS_AT_ONCE * slot_words(TILE_SLOTS));
        take(room->numbers, (TILE_SLOTS + 1) * E);
        take(room->scores, ROWS_AT_ONCE * SCORES);
        take(room->sums, rows * E);
        take(room->largest, rows);
        take(room->totals, rows * W);
        take(room->query_units, rows);
        take(room->weight_units, ROWS_AT_ONCE);
        return at;
    }
};

static long attend_room(long rows, long E) {
    Room room;
    return Room::lay_out(&room, nullptr, rows, E);
}

// Slots of a tile, from its first on.
struct Span {
    long from, upto;
};

// What token t sees of the tile that begins at slot `at`.
PARAGONE_INLINE Span seen(const Queries& queries, long t, long at) {
    return {std::clamp<long>(queries.firsts[t] - at, 0, TILE_SLOTS),
            std::clamp<long>(queries.lasts[t] - at, 0, TILE_SLOTS)};
}

// Lanes outside [from, upto) become -infinity.
PARAGONE_INLINE VF hidden(VF x, long from, long upto) {
    VI lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    VI own = (lane >= (int32_t)from) & (lane < (int32_t)upto);
    return (VF)(((VI)x & own) | (0xff800000 & ~own));
}

// Scores of one query with the slots `all` of a tile that begins at slot `at`, of which it sees `own`: capped, with
// their bias, and -infinity where it sees nothing. Its sums so far, and their total in lanes, are scaled to the new
// largest score.
static void settle(float* scores, long at, Span all, Span own, Scoring scoring, const float* bias, float* largest,
                   float* total, float* sums, long E) {
    if (scoring.softcap > 0) soften(scores + all.from, all.upto - all.from, scoring.softcap);
    if (bias)
        for (long s = own.from; s < own.upto; s++) scores[s] += bias[at + s];
    VF tops[2] = {splat(*largest), splat(*largest)};
    for (long s = all.from; s < all.upto; s += 2 * W)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            long here = s + i * W;
            VF x = load(scores + here);
            if (here < own.from || here + W > own.upto) {
                x = hidden(x, own.from - here, own.upto - here);
                store(scores + here, x);
            }
            tops[i] = larger(tops[i], x);
        }
    float top = largest_of(larger(tops[0], tops[1]));
    if (!(top > *largest)) return;
    if (*largest > -__builtin_inff()) {  // else they are zero
        VF share = exp(splat(*largest - top));
        store(total, load(total) * share);
        for (long e = 0; e < E; e++) sums[e] *= share[0];
    }
    *largest = top;
}

// Rows [first, first + rows) of the queries, at most ROWS_AT_ONCE, with a tile of which keys and values are in panels.
// Others come meanwhile, a little with each row.
static void attend_block(const Queries& queries, long group, long first, long rows, long at, const Word* tile, long E,
                         Scoring scoring, const Room& room, Coming coming) {
    // Whole panels of what one of them sees: on the diagonal that is little more than half of the tile.
    Span all{TILE_SLOTS, 0};
    bool everything = true;  // is what each of them sees
    for (long t = first / group; t <= (first + rows - 1) / group; t++) {
        Span own = seen(queries, t, at);
        everything &= own.from == 0 && own.upto == TILE_SLOTS;
        if (own.from >= own.upto) continue;
        all = {std::min(all.from, own.from / SLOT_STEP * SLOT_STEP),
               std::max(all.upto, (own.upto + SLOT_STEP - 1) / SLOT_STEP * SLOT_STEP)};
    }
    if (all.from >= all.upto) return;
    make_scores(tile, E, all.from, all.upto, room.queries + first * slot_words(E), room.query_units + first, rows,
                room.scores, SCORES);
    for (long i = 0, t = first / group, h = first % group; i < rows; i++) {
        long r = first + i;
        Span own = everything ? all : seen(queries, t, at);
        const float* bias = scoring.bias ? scoring.bias + h * scoring.stride : nullptr;
        float* scores = room.scores + i * SCORES;
        Word* weights = room.weights + i * slot_words(TILE_SLOTS);
        auto weigh_all = [&] {
            return weigh(scores, all.from, all.upto, room.largest[r], tile, E, room.totals + r * W, weights,
                         room.weight_units + i);
        };
        coming.fetch_some();
        float *largest = room.largest + r, *total = room.totals + r * W;
        if (own.from < own.upto) {
            // Scores are seldom much larger than those of the tiles before: of a query that sees all of a tile it need
            // not be known then which is largest.
            bool plain = own.from == 0 && own.upto == TILE_SLOTS && scoring.softcap == 0 && !bias;
            if (!(plain && *largest > -__builtin_inff() && weigh_all())) {
                settle(scores, at, all, own, scoring, bias, largest, total, room.sums + r * E, E);
                if (!weigh_all()) store(total, splat(__builtin_nanf("")));
            }
        } else {
            std::fill(weights + all.from / SLOT_NUMBERS, weights + all.upto / SLOT_NUMBERS, 0);
            room.weight_units[i] = 0;
        }
        if (++h < group) continue;
        h = 0;
        t++;
    }
    add_values(tile, E, all.from, all.upto, room.weights, room.weight_units, rows, room.sums + first * E);
}

static void attend_many(const Queries& queries, long group, const Slots& slots, const SlotTiles& tiles, long E,
                        Scoring scoring, uint8_t* room_at) {
    long rows = queries.tokens * group, words = slot_words(E), lines = tile_words(E) * sizeof(Word) / LINE;
#if PARAGONE_TILES
    WholeTiles use;
#endif
    Room room;
    Room::lay_out(&room, room_at, rows, E);
    int32_t lowest = queries.firsts[0], highest = queries.lasts[0];
    for (long t = 0; t < queries.tokens; t++) {
        lowest = std::min(lowest, queries.firsts[t]);
        highest = std::max(highest, queries.lasts[t]);
        for (long g = 0; g < group; g++)
            query_words(queries.q + t * queries.stride + g * E, E, room.queries + (t * group + g) * words,
                        room.query_units + t * group + g);
    }
    std::fill(room.largest, room.largest + rows, -__builtin_inff());
    std::fill(room.totals, room.totals + rows * W, 0.0f);
    std::fill(room.sums, room.sums + rows * E, 0.0f);
    for (long number = lowest / TILE_SLOTS; number * TILE_SLOTS < highest; number++) {
        long at = number * TILE_SLOTS;
        const Word* tile = tiles.words + (number - tiles.first) * tiles.stride;
        if (!tiles.words) {
            make_tile(slots, number, lowest, highest, E, room.tile, room.numbers);
            tile = room.tile;
        }
        // Queries that see nothing of this tile lie at one end: those of a window before, the earliest behind.
        long first = 0, last = queries.tokens;
        while (queries.lasts[first] <= at) first++;
        while (queries.firsts[last - 1] >= at + TILE_SLOTS) last--;
        // The next tile comes meanwhile, a little with each block.
        long blocks = ((last - first) * group + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, block = 0;
        long next = at + TILE_SLOTS, left = std::clamp<long>(highest - next, 0, TILE_SLOTS);
        for (long r = first * group; r < last * group; r += ROWS_AT_ONCE, block++) {
            long from = block, upto = block + 1, count = std::min(ROWS_AT_ONCE, last * group - r);
            Coming coming;
            if (!tiles.words) {
                fetch_slots(slots, next + left * from / blocks, next + left * upto / blocks);
            } else if (left) {
                auto other = (const uint8_t*)(tile + tiles.stride), end = other + lines * upto / blocks * LINE;
                coming = {other + lines * from / blocks * LINE, end, (lines / blocks + count) / count};
            }
            attend_block(queries, group, r, count, at, tile, E, scoring, room, coming);
        }
    }
    for (long r = 0; r < rows; r++) {
        float inverse = 1.0f / sum(load(room.totals + r * W));
        float* to = queries.out + r / group * queries.out_stride + r % group * E;
        for (long e = 0; e < E; e++) to[e] = room.sums[r * E + e] * inverse;
    }
}

}  // namespace PARAGONE_LEVEL
