// Keys and values as the attention of many queries multiplies them: a tile of slots at a time, in panels, keys turned
// and values with their neighbours.
#pragma once

#include "attention.h"
#include "fixed.h"
#include "panels.h"

namespace PARAGONE_LEVEL {

constexpr float MOST_WEIGHT = 0x1p60f;  // of a lane: weights are as exact as any others up to there

// A tile of keys in panels, and behind it one of values; behind each, the units of slots whose numbers are whole ones.
constexpr long UNITS = FIXED ? TILE_SLOTS : 0;
static long key_units_at(long E) { return (TILE_SLOTS * slot_words(E) + 15) / 16 * 16; }
static long value_words_at(long E) { return key_units_at(E) + UNITS; }
static long value_units_at(long E) {
    return value_words_at(E) + slot_words(TILE_SLOTS) * ((E + PANEL - 1) / PANEL * PANEL);
}
static long tile_words(long E) { return value_units_at(E) + UNITS; }

// W words of one row from number d on.
PARAGONE_INLINE VI row_words(const uint16_t* row, long d) {
    if constexpr (SLOT_NUMBERS == 2) return load_words(row + d);
    else return (VI)load(row + d);
}

// Sixteen rows, `count` of them there, numbers [0, D), as a panel of slot_words(D) words.
static void panel_of_rows(const uint16_t* const* rows, long count, long D, Word* panel) {
    constexpr long STEP = SLOT_NUMBERS * W;
    long words = slot_words(D);
    for (long r = 0; r < PANEL; r += W)
        for (long j = 0; j < words; j += W) {
            VI v[W];
            long d = j * SLOT_NUMBERS, here = std::min(W, words - j);
            if (r + W <= count && d + STEP <= D) {
#pragma GCC unroll 16
                for (long i = 0; i < W; i++) v[i] = row_words(rows[r + i], d);
                transpose(v);
#pragma GCC unroll 16
                for (long i = 0; i < W; i++) std::memcpy(panel + (j + i) * PANEL + r, &v[i], sizeof v[i]);
                continue;
            }
            for (long i = 0; i < W; i++) {
                uint16_t tail[STEP] = {};
                if (r + i < count) std::memcpy(tail, rows[r + i] + d, std::min(STEP, D - d) * 2);
                v[i] = row_words(tail, 0);
            }
            transpose(v);
            for (long i = 0; i < here; i++) std::memcpy(panel + (j + i) * PANEL + r, &v[i], sizeof v[i]);
        }
}

// Where the numbers of slots [at, at + count) lie, as bfloat16: where they are, or in `room`. Those before `begin`,
// whose blocks may have been given away, are `nothing`.
static void slot_numbers(const uint8_t* base, const Slots& slots, long at, long begin, long count, long E,
                         uint16_t* room, const uint16_t* nothing, const uint16_t** rows) {
    std::fill(rows, rows + begin, nothing);
    const int32_t* block = slots.table + (at + begin) / slots.size;
    for (long s = begin, in = (at + begin) % slots.size; s < count; block++, in = 0) {
        const uint8_t* row = base + *block * slots.stride + in * slots.row;
        for (; in < slots.size && s < count; in++, s++, row += slots.row) {
            if (!slots.eight_bit) {
                rows[s] = (const uint16_t*)row;
                continue;
            }
            const int8_t* codes = (const int8_t*)row;
            float scale = scale_of(codes, E);
            uint16_t* to = room + s * E;
            long e = 0;
            for (; e + W <= E; e += W) store(to + e, load(codes + e) * scale);
            for (; e < E; e++) to[e] = narrow(codes[e] * scale);
            rows[s] = to;
        }
    }
}

// Slots [from, upto) come nearer, as far as the second cache: the first is full of what is being worked on.
static void fetch_slots(const Slots& slots, long from, long upto) {
    for (long at = from; at < upto;) {
        long in = at % slots.size, here = std::min(upto - at, slots.size - in);
        long place = slots.table[at / slots.size] * slots.stride + in * slots.row;
        for (const uint8_t* base : {slots.keys, slots.values})
            for (long line = 0; line < here * slots.row; line += 64) __builtin_prefetch(base + place + line, 0, 2);
        at += here;
    }
}

// The first of the two slots that word j of a panel of values holds; the other is its neighbour. Of 32 slots whose
// weights are packed into words of whole numbers, registers hold four from each half in turn.
PARAGONE_INLINE constexpr long slot_of(long j) {
    if (!FIXED) return SLOT_NUMBERS * j;
    return j / 16 * 32 + j / 4 % 4 * 4 + j / 2 % 2 * 16 + j % 2 * 2;
}

// The values of `count` slots as panels of E rows: words of neighbouring slots where words hold pairs.
static void value_panels(const uint16_t* const* rows, long count, long E, Word* panels) {
    long words = slot_words(TILE_SLOTS), first = 0;
#if PARAGONE_LANES == 16
    for (; SLOT_NUMBERS == 2 && first + 2 * PANEL <= E; first += 2 * PANEL)
        for (long j = 0; j < words; j++) {
            long s = slot_of(j);
            VI low = s < count ? load_words(rows[s] + first) : VI{};
            VI high = s + 1 < count ? load_words(rows[s + 1] + first) : VI{};
            for (bool last : {false, true}) {
                VI both = interleave_halves(low, high, last);
                std::memcpy(panels + (first + last * PANEL) * words + j * PANEL, &both, sizeof both);
            }
        }
#endif
    for (; first < E; first += PANEL) {
        Word* panel = panels + first * words;
        long there = std::min(PANEL, E - first);
        for (long j = 0; j < words; j++) {
            long s = slot_of(j);
            for (long v = 0; v < PANEL; v += W) {
                if (v + W <= there) {
                    VU low = {}, high = {};
                    if (s < count) low = (VU)load(rows[s] + first + v);
                    if (SLOT_NUMBERS == 2 && s + 1 < count) high = (VU)load(rows[s + 1] + first + v);
                    VU word = SLOT_NUMBERS == 2 ? low >> 16 | high : low;
                    std::memcpy(panel + j * PANEL + v, &word, sizeof word);
                    continue;
                }
                for (long i = v; i < v + W; i++) {
                    Word low = s < count && i < there ? rows[s][first + i] : 0;
                    Word high = SLOT_NUMBERS == 2 && s + 1 < count && i < there ? rows[s + 1][first + i] : 0;
                    panel[j * PANEL + i] = SLOT_NUMBERS == 2 ? high << 16 | low : low << 16;
                }
            }
        }
    }
}

#if PARAGONE_FIXED
// The numbers of `count` slots become whole ones, in `room`, and their units; others have none.
static void fix_slots(const uint16_t** rows, long count, long E, uint16_t* room, float* units) {
    std::fill(units + count, units + TILE_SLOTS, 0.0f);
    for (long s = 0; s < count; s++) {
        units[s] = to_fixed(rows[s], E, PANEL_MOST, room + s * E);
        rows[s] = room + s * E;
    }
}
#endif

// What a tile has of slots [lowest, highest), with room for their numbers and one more.
static void make_tile(const Slots& slots, long tile, long lowest, long highest, long E, Word* to, uint16_t* numbers) {
    uint16_t* nothing = numbers + TILE_SLOTS * E;  // for slots whose blocks may have been given away
    std::fill(nothing, nothing + E, 0);
    long at = tile * TILE_SLOTS, words = slot_words(E);
    long begin = std::max(lowest - at, 0L), count = std::min(TILE_SLOTS, highest - at);
    const uint16_t *keys[TILE_SLOTS] = {}, *values[TILE_SLOTS] = {};
    slot_numbers(slots.keys, slots, at, begin, count, E, numbers, nothing, keys);
#if PARAGONE_FIXED
    fix_slots(keys, count, E, numbers, (float*)(to + key_units_at(E)));
#endif
    for (long s = 0; s < TILE_SLOTS; s += PANEL)
        panel_of_rows(keys + s, std::clamp<long>(count - s, 0, PANEL), E, to + s * words);
    slot_numbers(slots.values, slots, at, begin, count, E, numbers, nothing, values);
#if PARAGONE_FIXED
    fix_slots(values, count, E, numbers, (float*)(to + value_units_at(E)));
#endif
    value_panels(values, count, E, to + value_words_at(E));
}

}  // namespace PARAGONE_LEVEL
