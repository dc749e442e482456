// Products of packed weights with few registers: a quad of each row at a time passes all tokens of a tile.
//
// Before VNNI, instructions add two products of bytes up in 16 bits, and saturate. Codes of four bits are multiplied so:
// 32 products of at most 15 * 127 still fit into 16 bits, and the sums of a scale are widened only once. Codes of eight
// bits do not fit: they are multiplied in 16 bits, the even and the odd ones.
#pragma once

#include "finish.h"
#include "packed.h"

namespace PARAGONE_LEVEL {

static_assert(32 / 2 * 15 * 127 < 1 << 15);

template <int BITS> constexpr bool IN_BYTES = !QUADS && BITS == 4;
template <int BITS> constexpr bool IN_HALVES = !QUADS && BITS == 8;

PARAGONE_INLINE VT even_codes(VI codes) { return (VT)(codes & 0x00ff00ff); }
PARAGONE_INLINE VT odd_codes(VI codes) { return (VT)((VU)codes >> 8 & 0x00ff00ff); }
PARAGONE_INLINE VT even_numbers(VI bytes) { return (VT)bytes << 8 >> 8; }
PARAGONE_INLINE VT odd_numbers(VI bytes) { return (VT)bytes >> 8; }

// A block of M tokens as products want it: their codes as they lie, or in 16 bits, the even and the odd ones of a quad.
template <int BITS, int M> struct Tokens {
    static constexpr int OWN = BLOCK / 4 / W;  // registers
    const Quantised* first;
    long stride;
    alignas(64) VI even[M][OWN], odd[M][OWN];

    PARAGONE_MEMBER Tokens(const Quantised* x, long x_stride) : first(x), stride(x_stride) {
        if constexpr (IN_HALVES<BITS>)
#pragma GCC unroll 8
            for (int i = 0; i < M; i++)
#pragma GCC unroll 2
                for (int r = 0; r < OWN; r++) {
                    VI bytes = load_words(x[i * stride].codes + r * 4 * W);
                    even[i][r] = (VI)even_numbers(bytes);
                    odd[i][r] = (VI)odd_numbers(bytes);
                }
    }

    PARAGONE_MEMBER VI bytes(int i, int quad) const { return splat_word(first[i * stride].codes + 4 * quad); }
    PARAGONE_MEMBER VT evens(int i, int quad) const { return (VT)splat_word((const char*)even[i] + 4 * quad); }
    PARAGONE_MEMBER VT odds(int i, int quad) const { return (VT)splat_word((const char*)odd[i] + 4 * quad); }
};

// Panels [p, p + P) by tokens [m, m + M).
template <int BITS, bool MINIMUM, bool FINE, int P, int M>
static void panels_tile(const Packed& weight, long p, const Quantised* x, long m, const Out& to, Coming& coming) {
    constexpr long SIZE = block_bytes(BITS, MINIMUM, FINE);
    constexpr int PARTS = FINE ? 4 : 2, QUARTERS = 4 / PARTS;  // of a block that has a scale of its own
    long blocks = (weight.D + BLOCK - 1) / BLOCK, stride = blocks * SIZE;
    const uint8_t* panel = weight.panels + p * stride;
    x += m * blocks;
    VF sums[M][P * V] = {};
    for (long b = 0; b < blocks; b++, panel += SIZE, x++) {
        coming.fetch_some();
        Tokens<BITS, M> tokens(x, blocks);
        for (int part = 0; part < PARTS; part++) {
            Quarter<BITS, MINIMUM, FINE, P> w;
            VI whole[M][P * V];
            VT halves[M][P * V];
#pragma GCC unroll 2
            for (int quarter = 0; quarter < QUARTERS; quarter++) {
                w.fetch(panel, stride, FINE ? part / 2 : part, FINE ? part % 2 : quarter);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    int quad = (part * QUARTERS + quarter) * 4 + i;
                    bool begin = quarter == 0 && i == 0;
#pragma GCC unroll 8
                    for (int t = 0; t < M; t++) {
#pragma GCC unroll 4
                        for (int q = 0; q < P * V; q++) {
                            VI code = w.codes[i][q];
                            if constexpr (QUADS) {
                                VI before = begin ? VI{} : whole[t][q];
                                whole[t][q] = dot_quads(before, code, tokens.bytes(t, quad));
                            } else if constexpr (IN_BYTES<BITS>) {
                                VT two = dot_bytes(code, tokens.bytes(t, quad));
                                halves[t][q] = in_turn(begin ? two : halves[t][q] + two);
                            } else {
                                VI even = dot_halves(even_codes(code), tokens.evens(t, quad));
                                VI odd = dot_halves(odd_codes(code), tokens.odds(t, quad));
                                whole[t][q] = in_turn(begin ? even + odd : whole[t][q] + even + odd);
                            }
                        }
                    }
                }
            }
#pragma GCC unroll 8
            for (int t = 0; t < M; t++) {
                Share<BITS, MINIMUM, FINE> share(x[t * blocks], part);
#pragma GCC unroll 4
                for (int q = 0; q < P * V; q++) {
                    if constexpr (IN_BYTES<BITS>) whole[t][q] = dot_halves(halves[t][q], 1 - VT{});
                    VF sum = __builtin_convertvector(whole[t][q] + share.start, VF);
                    sums[t][q] += sum * (w.scales[q] * share.scale);
                    if constexpr (MINIMUM) sums[t][q] += w.minima[q] * share.total;
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < M; t++) {
#pragma GCC unroll 4
        for (int q = 0; q < P * V; q++) sums[t][q] *= weight.unit;
        finish(to, m + t, p * PANEL, std::min(P * PANEL, weight.rows - p * PANEL), sums[t]);
    }
}

constexpr int TILE = 4;                      // tokens
constexpr int TILE_WIDTH = W == 16 ? 2 : 1;  // panels: as many sums as fit into the registers

}  // namespace PARAGONE_LEVEL
