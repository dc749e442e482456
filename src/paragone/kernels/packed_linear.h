// Products of packed weights with tokens, a few panels and tokens at a time, or many tokens with matrix units.
#pragma once

#if defined(__AVX512VNNI__) || PARAGONE_LANES == 4
#include "packed_quads.h"
#else
#include "packed_halves.h"
#endif
#include "packed_tiles.h"
#include "packed_words.h"

namespace PARAGONE_LEVEL {

// Panels [p, p + P) by all M tokens, while the next ones come.
template <int BITS, bool MINIMUM, bool FINE, int P>
static void packed_by_tokens(const Packed& w, long p, const Quantised* x, long M, const Out& to) {
    long steps = (M + TILE - 1) / TILE * ((w.D + BLOCK - 1) / BLOCK);
    const uint8_t* from = w.panels + (p + P) * w.stride;
    Coming coming{from, from + P * w.stride, (P * w.stride / LINE + steps - 1) / steps};
    pass_panels<BITS, MINIMUM, FINE, P>(w, p, x, M, to, coming);
}

template <int BITS, bool MINIMUM, bool FINE>
static void panels_times(const Packed& w, long first, long last, const Quantised* x, long M, const Out& to) {
    constexpr long LINES = block_bytes(BITS, MINIMUM, FINE) / LINE;  // of a block of one panel
    long p = first;
    if (M == 1) {
        // Panels lie as they are read.
        const uint8_t *from = w.panels + p * w.stride, *end = w.panels + last * w.stride;
        constexpr bool slow = MINIMUM || FINE || (stored(BITS) > 4 && stored(BITS) < 8);
        Coming coming{ahead_of(from, end, slow), end, LINES};
        for (; p < last; p++) pass_panels<BITS, MINIMUM, FINE, 1>(w, p, x, 1, to, coming);
        return;
    }
#if PARAGONE_TILES
    if constexpr (!FINE) {  // a tile of 16 inputs takes as long as one of 32
        if (M >= LEAST_OF_TILE && M <= TILE_ROWS / 2)
            return codes_by_tiles<BITS, MINIMUM, TILE_ROWS / 2>(w, first, last, x, M, to);
        if (M >= LEAST_OF_TILES * ((M + TILE_ROWS - 1) / TILE_ROWS))
            return codes_by_tiles<BITS, MINIMUM, TILE_ROWS>(w, first, last, x, M, to);
    }
#endif
    if (M >= 4)  // measured: two or three wait for memory, which gives one panel after the other sooner
        for (; p + TILE_WIDTH <= last; p += TILE_WIDTH)
            packed_by_tokens<BITS, MINIMUM, FINE, TILE_WIDTH>(w, p, x, M, to);
    for (; p < last; p++) packed_by_tokens<BITS, MINIMUM, FINE, 1>(w, p, x, M, to);
}

// Calls what it is given with a weight's layout: bits, has_minimum, fine. The layouts are those that some format needs
// (ops/packed.py).
template <class Call> static void with_layout(const Packed& w, Call call) {
    bool least = w.has_minimum, fine = w.fine;
    if (w.has_levels) {
        if (fine) call.template operator()<LEVELS, false, true>();
        else call.template operator()<LEVELS, false, false>();
    } else if (w.bits == 4) {
        if (least && fine) call.template operator()<4, true, true>();
        else if (least) call.template operator()<4, true, false>();
        else if (fine) call.template operator()<4, false, true>();
        else call.template operator()<4, false, false>();
    } else if (w.bits == 5) {
        if (least) call.template operator()<5, true, false>();
        else call.template operator()<5, false, false>();
    } else if (w.bits == 6) {
        call.template operator()<6, false, true>();
    } else {
        if (least) call.template operator()<8, true, false>();
        else call.template operator()<8, false, false>();
    }
}

// Panels [first, last) of the weight by M tokens.
static void packed_linear(const Packed& w, long first, long last, const Quantised* x, long M, const Out& to) {
    with_layout(w, [&]<int BITS, bool MINIMUM, bool FINE>() {
        panels_times<BITS, MINIMUM, FINE>(w, first, last, x, M, to);
    });
}

#if PARAGONE_TILES
static void packed_words_linear(const Packed& w, long first, long last, const Word* x, long M, const Out& to,
                                Word* room) {
    TokenTiles tokens(M);
    TileShapes shapes;
    for (int tile = 0; tile < 8; tile++) shapes.set(tile, tile == 6 ? TILE_ROWS : tokens.rows, 64);
    TileUse use(shapes);
    with_layout(w, [&]<int BITS, bool MINIMUM, bool FINE>() {
        panels_in_words<BITS, MINIMUM, FINE>(w, first, last, x, tokens, to, room);
    });
}
#endif

}  // namespace PARAGONE_LEVEL
