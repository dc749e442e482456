// Attention of many queries at once, a tile of slots at a time with the softmax carried along (arXiv 2205.14135).
//
// Tiles begin at multiples of their size, and slots that a query does not see add nothing to it, so that what comes
// out for a query does not depend on the queries beside it.
#pragma once

#include "attention.h"
#include "panels.h"
#include "rowwise.h"

namespace PARAGONE_LEVEL {

constexpr long TILE_SLOTS = 128;

// What the work on `rows` queries of width E needs, one after the other.
struct Room {
    Word *queries, *panels, *weights;
    uint16_t* numbers;
    float *scores, *sums, *largest, *totals;

    static long lay_out(Room* room, uint8_t* from, long rows, long E) {
        long at = 0;
        auto take = [&](auto*& pointer, long count) {
            pointer = (std::remove_reference_t<decltype(pointer)>)(from + at);
            at += (count * sizeof *pointer + 63) / 64 * 64;
        };
        long wide = (E + PANEL - 1) / PANEL * PANEL;
        take(room->queries, rows * words_of(E));
        take(room->panels, std::max(TILE_SLOTS * words_of(E), words_of(TILE_SLOTS) * wide));
        take(room->weights, rows * words_of(TILE_SLOTS));
        take(room->numbers, (TILE_SLOTS + 1) * E);
        take(room->scores, rows * TILE_SLOTS);
        take(room->sums, rows * E);
        take(room->largest, rows);
        take(room->totals, rows);
        return at;
    }
};

static long attend_room(long rows, long E) {
    Room room;
    return Room::lay_out(&room, nullptr, rows, E);
}

// One slot's numbers, as bfloat16: where they lie, or in `to`.
static const uint16_t* slot_numbers(const uint8_t* base, const Slots& slots, long at, long E, uint16_t* to) {
    const uint8_t* row = base + slots.table[at / slots.size] * slots.stride + at % slots.size * slots.row;
    if (!slots.eight_bit) return (const uint16_t*)row;
    const int8_t* codes = (const int8_t*)row;
    float scale = scale_of(codes, E);
    long e = 0;
    for (; e + W <= E; e += W) store(to + e, load(codes + e) * scale);
    for (; e < E; e++) to[e] = narrow(codes[e] * scale);
    return to;
}

// Slots [at, at + count) of the values as panels of E rows: words of neighbouring slots where words hold pairs.
static void value_panels(const uint16_t* const* rows, long count, long E, Word* panels) {
    long words = words_of(TILE_SLOTS);
    for (long first = 0; first < E; first += PANEL) {
        Word* panel = panels + first * words;
        long there = std::min(PANEL, E - first);
        for (long j = 0; j < words; j++)
            for (long v = 0; v < PANEL; v += W) {
                if (v + W <= there) {
                    VU low = {}, high = {};
                    if (NUMBERS * j < count) low = (VU)load(rows[NUMBERS * j] + first + v);
                    if (NUMBERS == 2 && 2 * j + 1 < count) high = (VU)load(rows[2 * j + 1] + first + v);
                    VU word = NUMBERS == 2 ? low >> 16 | high : low;
                    std::memcpy(panel + j * PANEL + v, &word, sizeof word);
                    continue;
                }
                for (long i = v; i < v + W; i++) {
                    Word low = NUMBERS * j < count && i < there ? rows[NUMBERS * j][first + i] : 0;
                    Word high = NUMBERS == 2 && 2 * j + 1 < count && i < there ? rows[2 * j + 1][first + i] : 0;
                    panel[j * PANEL + i] = NUMBERS == 2 ? high << 16 | low : low << 16;
                }
            }
    }
}

// Scores of one query with a tile that begins at slot `at`, of which it sees [from, upto), become weights; the
// query's sums so far are scaled to the new largest score.
static void weigh(float* scores, long at, long from, long upto, Scoring scoring, const float* bias, float* largest,
                  float* total, float* sums, long E) {
    if (scoring.softcap > 0) soften(scores, TILE_SLOTS, scoring.softcap);
    if (bias)
        for (long s = from; s < upto; s++) scores[s] += bias[at + s];
    for (long s = 0; s < from; s++) scores[s] = -__builtin_inff();
    for (long s = upto; s < TILE_SLOTS; s++) scores[s] = -__builtin_inff();
    VF tops = splat(*largest);
    for (long s = 0; s < TILE_SLOTS; s += W) tops = larger(tops, load(scores + s));
    float top = largest_of(tops);
    VF added = {};
    for (long s = 0; s < TILE_SLOTS; s += W) {
        VF p = exp(load(scores + s) - top);
        store(scores + s, p);
        added += p;
    }
    if (top > *largest) {
        float share = exp(splat(*largest - top))[0];
        *total *= share;
        for (long e = 0; e < E; e++) sums[e] *= share;
        *largest = top;
    }
    *total += sum(added);
}

static void attend_many(const Queries& queries, long group, const Slots& slots, long E, Scoring scoring,
                        uint8_t* room_at) {
    long rows = queries.tokens * group, words = words_of(E);
    Room room;
    Room::lay_out(&room, room_at, rows, E);
    int32_t lowest = queries.firsts[0], highest = queries.lasts[0];
    for (long t = 0; t < queries.tokens; t++) {
        lowest = std::min(lowest, queries.firsts[t]);
        highest = std::max(highest, queries.lasts[t]);
        for (long g = 0; g < group; g++)
            to_words(queries.q + t * queries.stride + g * E, E, room.queries + (t * group + g) * words);
    }
    uint16_t* nothing = room.numbers + TILE_SLOTS * E;  // for slots whose blocks may have been given away
    std::fill(nothing, nothing + E, 0);
    std::fill(room.largest, room.largest + rows, -__builtin_inff());
    std::fill(room.totals, room.totals + rows, 0.0f);
    std::fill(room.sums, room.sums + rows * E, 0.0f);
    for (long at = lowest / TILE_SLOTS * TILE_SLOTS; at < highest; at += TILE_SLOTS) {
        long begin = std::max<long>(lowest - at, 0), count = std::min(TILE_SLOTS, highest - at);
        const uint16_t *keys[TILE_SLOTS] = {}, *values[TILE_SLOTS] = {};
        // Queries that see nothing of this tile lie at one end: those of a window before, the earliest behind.
        long first = 0, last = queries.tokens;
        while (queries.lasts[first] <= at) first++;
        while (queries.firsts[last - 1] >= at + TILE_SLOTS) last--;
        for (long s = 0; s < count; s++)
            keys[s] = s < begin ? nothing : slot_numbers(slots.keys, slots, at + s, E, room.numbers + s * E);
        for (long s = 0; s < TILE_SLOTS; s += PANEL)
            panel_of_rows(keys + s, std::clamp<long>(count - s, 0, PANEL), E, room.panels + s * words);
        long r = first * group, here = (last - first) * group;
        Out out{room.scores + r * TILE_SLOTS, TILE_SLOTS, nullptr, false};
        for (long s = 0; s < TILE_SLOTS; s += PANEL_ROWS)
            panels_by_tokens<TILE_PANELS>(room.panels + s * words, PANEL * words, words, room.queries + r * words, words,
                                          here, out, s, PANEL_ROWS);
        for (; r < last * group; r++) {
            long t = r / group, from = std::clamp<long>(queries.firsts[t] - at, 0, TILE_SLOTS);
            long upto = std::clamp<long>(queries.lasts[t] - at, 0, TILE_SLOTS);
            float* scores = room.scores + r * TILE_SLOTS;
            const float* bias = scoring.bias ? scoring.bias + r % group * scoring.stride : nullptr;
            if (from < upto)
                weigh(scores, at, from, upto, scoring, bias, room.largest + r, room.totals + r, room.sums + r * E, E);
            else
                std::fill(scores, scores + TILE_SLOTS, 0.0f);
            to_words(scores, TILE_SLOTS, room.weights + r * words_of(TILE_SLOTS));
        }
        for (long s = 0; s < count; s++)
            values[s] = s < begin ? nothing : slot_numbers(slots.values, slots, at + s, E, room.numbers + s * E);
        value_panels(values, count, E, room.panels);
        r = first * group;
        Out sums{room.sums + r * E, E, nullptr, true};
        long slot_words = words_of(TILE_SLOTS);
        for (long e = 0; e < E; e += PANEL_ROWS) {
            auto run = E - e > PANEL ? panels_by_tokens<TILE_PANELS> : panels_by_tokens<1>;
            run(room.panels + e * slot_words, PANEL * slot_words, slot_words, room.weights + r * slot_words, slot_words,
                here, sums, e, std::min(PANEL_ROWS, E - e));
        }
    }
    for (long r = 0; r < rows; r++) {
        float inverse = 1.0f / room.totals[r];
        float* to = queries.out + r / group * queries.out_stride + r % group * E;
        for (long e = 0; e < E; e++) to[e] = room.sums[r * E + e] * inverse;
    }
}

}  // namespace PARAGONE_LEVEL
