// Products of packed weights with few registers, or without VNNI: a quad of each row at a time passes all tokens of a
// tile.
//
// AVX2 is here with VNNI, too, which adds four products of bytes up (QUADS), for it has as few registers as without.
// Before VNNI, instructions add two products of bytes up in 16 bits, and saturate. Of codes of four bits 16 products of
// at most 15 * 127 still fit into 16 bits, so that the sums of a scale are widened only once; of five bits 8 fit, of six
// bits 4, and of eight bits two where signs are the inputs' own: the size of a code, of up to 128, times what is left of
// the input.
#pragma once

#include "each.h"
#include "finish.h"
#include "packed.h"

namespace PARAGONE_LEVEL {

template <int BITS> constexpr bool IN_BYTES = !QUADS && meant(BITS) < 8;
template <int BITS> constexpr int FIT = 8 >> (meant(BITS) - 4);  // quads whose products' sums need not be widened in between
static_assert(2 * FIT<4> * 15 * 127 < 1 << 15 && 2 * FIT<5> * 31 * 127 < 1 << 15 && 2 * FIT<6> * 63 * 127 < 1 << 15);
static_assert(2 * 128 * 127 < 1 << 15);
template <int BITS> constexpr bool SIGNED = !QUADS && meant(BITS) == 8;

// Panels [p, p + P) by tokens [m, m + M).
template <int BITS, bool MINIMUM, bool FINE, int P, int M>
static void panels_tile(const Packed& weight, long p, const Quantised* x, long m, const Out& to, Coming& coming) {
    constexpr long SIZE = block_bytes(BITS, MINIMUM, FINE);
    constexpr int PARTS = FINE ? 4 : 2, QUARTERS = 4 / PARTS;  // of a block that has a scale of its own
    long blocks = (weight.D + BLOCK - 1) / BLOCK, stride = weight.stride;
    const uint8_t* panel = weight.panels + p * stride;
    x += m * blocks;
    VF sums[M][P * V] = {};
    for (long b = 0; b < blocks; b++, panel += SIZE, x++) {
        coming.fetch_some();
        for (int part = 0; part < PARTS; part++) {
            Quarter<BITS, MINIMUM, FINE, P> w;
            VI whole[M][P * V];
            VT halves[M][P * V];
#pragma GCC unroll 2
            for (int quarter = 0; quarter < QUARTERS; quarter++) {
                w.fetch(weight, panel, stride, FINE ? part / 2 : part, FINE ? part % 2 : quarter);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    constexpr int TOGETHER = meant(BITS) == 8 ? 1 : std::min(FIT<BITS>, 4 * QUARTERS);
                    int of_part = 4 * quarter + i, quad = part * QUARTERS * 4 + of_part;
                    bool begin = of_part == 0;
                    VI own[P * V], size[P * V];
#pragma GCC unroll 4
                    for (int q = 0; SIGNED<BITS> && q < P * V; q++) {
                        own[q] = w.codes[i][q] ^ 0x80808080;  // less the center
                        size[q] = sizes_of_bytes(own[q]);
                    }
#pragma GCC unroll 8
                    for (int t = 0; t < M; t++) {
                        VI four = splat_word(x[t * blocks].codes + 4 * quad);
#pragma GCC unroll 4
                        for (int q = 0; q < P * V; q++) {
                            VI code = w.codes[i][q];
                            if constexpr (QUADS) {
                                whole[t][q] = dot_quads(begin ? VI{} : whole[t][q], code, four);
                            } else if constexpr (IN_BYTES<BITS>) {
                                VT two = dot_bytes(code, four);
                                halves[t][q] = in_turn(of_part % TOGETHER ? halves[t][q] + two : two);
                                if (of_part % TOGETHER < TOGETHER - 1) continue;
                                VI wide = dot_halves(halves[t][q], 1 - VT{});
                                whole[t][q] = of_part < TOGETHER ? wide : whole[t][q] + wide;
                            } else {
                                VI both = dot_halves(dot_bytes(size[q], with_signs(four, own[q])), 1 - VT{});
                                whole[t][q] = in_turn(begin ? both : whole[t][q] + both);
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
                    if constexpr (!SIGNED<BITS>) whole[t][q] += share.start;
                    VF sum = __builtin_convertvector(whole[t][q], VF);
                    sums[t][q] = multiply_add(sum, w.scales[q] * share.scale, sums[t][q]);
                    if constexpr (MINIMUM) sums[t][q] = multiply_add(w.minima[q], share.total, sums[t][q]);
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

// Panels [p, p + P) by all M tokens, which pass them in tiles.
template <int BITS, bool MINIMUM, bool FINE, int P>
static void pass_panels(const Packed& w, long p, const Quantised* x, long M, const Out& to, Coming& coming) {
    tiles_of<TILE>(M, [&]<int COUNT>(long m) { panels_tile<BITS, MINIMUM, FINE, P, COUNT>(w, p, x, m, to, coming); });
}

}  // namespace PARAGONE_LEVEL
