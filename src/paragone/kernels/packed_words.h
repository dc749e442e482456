// Products of packed weights by many tokens in bfloat16, for matrix units: sums of codes have to be brought to scale
// after every 32 inputs, which takes longer than the products do, while products of bfloat16 are summed up by the unit
// itself. A panel is brought into words once, which stay in a near cache while all tokens pass.
#pragma once

#include "packed.h"
#include "panels.h"

#if PARAGONE_TILES

namespace PARAGONE_LEVEL {

static_assert(PAIRS && V == 1);
constexpr long BLOCK_WORDS = BLOCK / NUMBERS;
constexpr long LEAST_TOKENS = 24;  // for which it is faster than sums of codes
constexpr long CHUNK = 16;  // blocks of two panels that are in words at once

// One token's codes, as words: what comes out differs from sums of codes by the rounding of the factors alone.
static void codes_to_words(const Quantised* x, long D, Word* to) {
    for (long b = 0; b < (D + BLOCK - 1) / BLOCK; b++, x++)
        for (int half = 0; half < 2; half++, to += PANEL) {
            const int8_t* codes = x->codes + half * 2 * PANEL;
            store((uint16_t*)to, load(codes) * x->scales[half], load(codes + PANEL) * x->scales[half]);
        }
}

// Words of two bfloat16 numbers each, the lower halves of `low`: finite numbers, rounded to the nearest.
PARAGONE_INLINE VI to_pairs(VF low, VF high) {
    VU one = ((VU)low + 0x8000) >> 16, other = (VU)high + 0x8000;
    return (VI)_mm512_mask_mov_epi16((__m512i)one, 0xaaaaaaaa, (__m512i)other);
}

// A block of a panel as words, sixteen rows side by side.
template <int BITS, bool MINIMUM, bool FINE>
PARAGONE_INLINE void words_of_block(const Packed& weight, const uint8_t* block, Word* to) {
    constexpr float CENTER = meant(BITS) == 8 ? 128 : MINIMUM ? 0 : 8 << (stored(BITS) - 4);
    VF counted;  // what codes of four bits stand for
    for (int i = 0; i < PANEL; i++) counted[i] = i - CENTER;
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; quarter++) {
        Quarter<BITS, MINIMUM, FINE, 1> w;
        w.fetch(weight, block, 0, quarter / 2, quarter % 2);
        VF scale = w.scales[0] * weight.unit, zero = {};
        if constexpr (BITS != 4) zero = scale * -CENTER;
        if constexpr (MINIMUM) zero = multiply_add(w.minima[0], weight.unit, zero);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            VF numbers[4];
#pragma GCC unroll 4
            for (int byte = 0; byte < 4; byte++) {
                VI code = (VI)((VU)w.codes[i][0] >> 8 * byte);
                VF number = BITS == 4 ? (VF)_mm512_permutexvar_ps((__m512i)code, (__m512)counted)
                                      : __builtin_convertvector(code & 255, VF);
                numbers[byte] = BITS == 4 && !MINIMUM ? number * scale : multiply_add(number, scale, zero);
            }
            for (int pair = 0; pair < 2; pair++, to += PANEL) {
                VI words = to_pairs(numbers[2 * pair], numbers[2 * pair + 1]);
                std::memcpy(to, &words, sizeof words);
            }
        }
    }
}

constexpr long PACKED_WORDS_ROOM = TILE_PANELS * CHUNK * BLOCK_WORDS * PANEL;

// Panels [first, last) of the weight by M tokens, a chunk of one or two of them at a time.
template <int BITS, bool MINIMUM, bool FINE>
static void panels_in_words(const Packed& w, long first, long last, const Word* x, long M, const Out& to, Word* room) {
    constexpr long SIZE = block_bytes(BITS, MINIMUM, FINE);
    long blocks = (w.D + BLOCK - 1) / BLOCK, stride = blocks * BLOCK_WORDS;
    auto multiply = [&]<int P>(long p) {
        for (long from = 0; from < blocks; from += CHUNK) {
            long deep = std::min(CHUNK, blocks - from), words = deep * BLOCK_WORDS;
            for (int q = 0; q < P; q++) {
                const uint8_t* block = w.panels + ((p + q) * blocks + from) * SIZE;
                Word* panel = room + q * words * PANEL;
                for (long b = 0; b < deep; b++, block += SIZE, panel += BLOCK_WORDS * PANEL)
                    words_of_block<BITS, MINIMUM, FINE>(w, block, panel);
            }
            Out mine = to;
            if (from) {
                mine.add = true;
                mine.bias = nullptr;
            }
            const uint8_t* next = w.panels + ((p + P - 1) * blocks + from + deep) * SIZE;
            panels_by_tokens<P>(room, words * PANEL, words, x + from * BLOCK_WORDS, stride, M, mine, p * PANEL,
                                std::min(P * PANEL, w.rows - p * PANEL), false, next,
                                std::min(next + P * deep * SIZE, w.panels + last * blocks * SIZE));
        }
    };
    long p = first;
    for (; p + TILE_PANELS <= last; p += TILE_PANELS) multiply.template operator()<TILE_PANELS>(p);
    for (; p < last; p++) multiply.template operator()<1>(p);
}

}  // namespace PARAGONE_LEVEL

#endif
