// Keys and values as the attention of many queries multiplies them: a tile of slots at a time, in panels, keys turned and
// values with their neighbours.
#pragma once

#include "attention.h"
#include "panels.h"

namespace PARAGONE_LEVEL {

// A tile of keys in panels, and behind it one of values.
static long value_words_at(long E) { return (TILE_SLOTS * words_of(E) + 15) / 16 * 16; }
static long tile_words(long E) { return value_words_at(E) + words_of(TILE_SLOTS) * ((E + PANEL - 1) / PANEL * PANEL); }

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

// Slots [at, at + count) of the values as panels of E rows: words of neighbouring slots where words hold pairs.
static void value_panels(const uint16_t* const* rows, long count, long E, Word* panels) {
    long words = words_of(TILE_SLOTS), first = 0;
#if defined(__AVX512BF16__)
    for (; first + 2 * PANEL <= E; first += 2 * PANEL)
        for (long j = 0; j < words; j++) {
            VI low = 2 * j < count ? load_words(rows[2 * j] + first) : VI{};
            VI high = 2 * j + 1 < count ? load_words(rows[2 * j + 1] + first) : VI{};
            for (bool last : {false, true}) {
                VI both = interleave_halves(low, high, last);
                std::memcpy(panels + (first + last * PANEL) * words + j * PANEL, &both, sizeof both);
            }
        }
#endif
    for (; first < E; first += PANEL) {
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

// What a tile has of slots [lowest, highest), with room for their numbers and one more.
static void make_tile(const Slots& slots, long tile, long lowest, long highest, long E, Word* to, uint16_t* numbers) {
    uint16_t* nothing = numbers + TILE_SLOTS * E;  // for slots whose blocks may have been given away
    std::fill(nothing, nothing + E, 0);
    long at = tile * TILE_SLOTS, words = words_of(E);
    long begin = std::max(lowest - at, 0L), count = std::min(TILE_SLOTS, highest - at);
    const uint16_t *keys[TILE_SLOTS] = {}, *values[TILE_SLOTS] = {};
    slot_numbers(slots.keys, slots, at, begin, count, E, numbers, nothing, keys);
    for (long s = 0; s < TILE_SLOTS; s += PANEL)
        panel_of_rows(keys + s, std::clamp<long>(count - s, 0, PANEL), E, to + s * words);
    slot_numbers(slots.values, slots, at, begin, count, E, numbers, nothing, values);
    value_panels(values, count, E, to + value_words_at(E));
}

}  // namespace PARAGONE_LEVEL
