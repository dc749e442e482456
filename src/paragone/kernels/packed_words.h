// Products of packed weights by many tokens in bfloat16, for matrix units: products of codes have to be brought to scale
// after every 32 inputs, which takes longer than the products do, while those of bfloat16 are summed up by the unit
// itself. A panel is brought into words once, which stay in a near cache while all tokens pass.
#pragma once

#include "compress.h"
#include "packed.h"
#include "panels.h"

namespace PARAGONE_LEVEL {

static_assert(PAIRS && V == 1);
constexpr long BLOCK_WORDS = BLOCK / NUMBERS, DEEP_BLOCKS = DEPTH / BLOCK_WORDS;  // brought at a time

// Blocks [from, from + count) of a panel as words, sixteen rows side by side.
template <int BITS, bool MINIMUM, bool FINE>
static void panel_of_codes(const Packed& weight, long p, long from, long count, Word* panel) {
    constexpr long SIZE = block_bytes(BITS, MINIMUM, FINE);
    const VF counted = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const uint8_t* block = weight.panels + (p * ((weight.D + BLOCK - 1) / BLOCK) + from) * SIZE;
    for (; count--; block += SIZE)
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) {
            Quarter<BITS, MINIMUM, FINE, 1> w;
            w.fetch(block, 0, part / 2, part % 2);
            VF scale = w.scales[0] * weight.unit, zero = scale * -(float)CENTER<BITS, MINIMUM>;
            if constexpr (MINIMUM) zero = multiply_add(w.minima[0], weight.unit, zero);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                VF numbers[4];
#pragma GCC unroll 4
                for (int byte = 0; byte < 4; byte++) {
                    VI code = (VI)((VU)w.codes[i][0] >> 8 * byte);
                    VF number = BITS == 4 ? (VF)_mm512_permutexvar_ps((__m512i)code, (__m512)counted)
                                          : __builtin_convertvector(code & 255, VF);
                    numbers[byte] = multiply_add(number, scale, zero);
                }
                for (int pair = 0; pair < 2; pair++, panel += PANEL) {
                    VI words = to_pairs(numbers[2 * pair], numbers[2 * pair + 1]);
                    std::memcpy(panel, &words, sizeof words);
                }
            }
        }
}

// Panels [first, last) of the weight by M tokens of words_of(D to the next 8) words.
template <int BITS, bool MINIMUM, bool FINE>
static void panels_in_words(const Packed& w, long first, long last, const Word* x, long M, const Out& to, Word* room) {
    long blocks = (w.D + BLOCK - 1) / BLOCK, words = words_of(compressed::blocks_of(w.D) * compressed::INPUTS);
    for (long p = first; p < last; p += TILE_PANELS)
        for (long from = 0; from < blocks; from += DEEP_BLOCKS) {
            long deep = std::min(DEEP_BLOCKS, blocks - from), begin = from * BLOCK_WORDS, row = p * PANEL;
            long panels = std::min<long>(TILE_PANELS, last - p);
            for (long q = 0; q < panels; q++)
                panel_of_codes<BITS, MINIMUM, FINE>(w, p + q, from, deep, room + q * DEPTH * PANEL);
            Out mine = to;
            if (from) {
                mine.add = true;
                mine.bias = nullptr;
            }
            auto run = panels == TILE_PANELS ? panels_by_tokens<TILE_PANELS> : panels_by_tokens<1>;
            run(room, DEPTH * PANEL, std::min(deep * BLOCK_WORDS, words - begin), x + begin, words, M, mine, row,
                std::min(panels * PANEL, w.rows - row), false, nullptr, nullptr);
        }
}

}  // namespace PARAGONE_LEVEL
