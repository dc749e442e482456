// Products of packed weights with tokens, a few panels and tokens at a time, or many tokens with matrix units.
#pragma once

#if defined(__AVX512VNNI__) || PARAGONE_LANES == 4
#include "packed_quads.h"
#else
#include "packed_halves.h"
#endif
#if PARAGONE_TILES
#include "packed_tiles.h"
#endif

namespace PARAGONE_LEVEL {

constexpr long AHEAD = 1024;  // bytes

template <int BITS, bool MINIMUM, bool FINE>
static void panels_times(const Packed& w, long first, long last, const Quantised* x, long M, const Out& to) {
    constexpr long LINES = block_bytes(BITS, MINIMUM, FINE) / LINE;  // of a block of one panel
    long stride = (w.D + BLOCK - 1) / BLOCK * LINES * LINE, p = first;
    if (M == 1) {
        // Panels lie as they are read. With wide registers the processor fetches them ahead by itself, faster than it
        // can be told to; with narrow ones a line takes so many instructions that it does not see the next in time.
        const uint8_t *from = w.panels + p * stride, *end = w.panels + last * stride;
        Coming coming{W < 16 ? from + AHEAD : end, end, LINES};
        for (; p < last; p++) panels_tile<BITS, MINIMUM, FINE, 1, 1>(w, p, x, 0, to, coming);
        return;
    }
    // While all tokens pass these panels, the next ones come.
    auto tokens = [&]<int P>(long p) {
        const uint8_t* from = w.panels + (p + P) * stride;
        long m = 0, tiles = M / TILE + M % TILE / 2 + M % 2;
        Coming coming{from, from + P * stride, (P * LINES + tiles - 1) / tiles};
        for (; m + TILE <= M; m += TILE) panels_tile<BITS, MINIMUM, FINE, P, TILE>(w, p, x, m, to, coming);
        if (m + 2 <= M) {
            panels_tile<BITS, MINIMUM, FINE, P, 2>(w, p, x, m, to, coming);
            m += 2;
        }
        if (m < M) panels_tile<BITS, MINIMUM, FINE, P, 1>(w, p, x, m, to, coming);
    };
#if PARAGONE_TILES
    if (M >= TILE_ROWS)
        for (; p < last; p++) panel_tiles<BITS, MINIMUM, FINE>(w, p, x, M, to);
#endif
    if (M >= TILE)
        for (; p + TILE_WIDTH <= last; p += TILE_WIDTH) tokens.template operator()<TILE_WIDTH>(p);
    for (; p < last; p++) tokens.template operator()<1>(p);
}

// Panels [first, last) of the weight by M tokens. The layouts are those that some format needs (ops/packed.py).
static void packed_linear(const Packed& w, long first, long last, const Quantised* x, long M, const Out& to) {
    bool least = w.has_minimum, fine = w.fine;
    auto run = w.has_levels  ? fine ? panels_times<LEVELS, false, true> : panels_times<LEVELS, false, false>
               : w.bits == 4 ? least ? fine ? panels_times<4, true, true> : panels_times<4, true, false>
                               : fine ? panels_times<4, false, true> : panels_times<4, false, false>
               : w.bits == 5 ? least ? panels_times<5, true, false> : panels_times<5, false, false>
               : w.bits == 6 ? panels_times<6, false, true>
               : least ? panels_times<8, true, false> : panels_times<8, false, false>;
    run(w, first, last, x, M, to);
}

}  // namespace PARAGONE_LEVEL
