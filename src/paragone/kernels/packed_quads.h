// Products of packed weights where one instruction multiplies four bytes in each lane and adds them up.
#pragma once

#include "finish.h"
#include "packed.h"

namespace PARAGONE_LEVEL {

// Panels [p, p + P) by tokens [m, m + M).
template <int BITS, bool MINIMUM, bool FINE, int P, int M>
static void panels_tile(const Packed& weight, long p, const Quantised* x, long m, const Out& to, Coming& coming) {
    constexpr long SIZE = block_bytes(BITS, MINIMUM, FINE);
    long blocks = (weight.D + BLOCK - 1) / BLOCK, stride = weight.stride;
    const uint8_t* panel = weight.panels + p * stride;
    x += m * blocks;
    VF sums[M][P * V] = {};
    for (long b = 0; b < blocks; b++, panel += SIZE, x++) {
        coming.fetch_some();
        for (int half = 0; half < 2; half++) {
            VI whole[M][P * V];
#pragma GCC unroll 2
            for (int quarter = 0; quarter < 2; quarter++) {
                Quarter<BITS, MINIMUM, FINE, P> w;
                w.fetch(weight, panel, stride, half, quarter);
#pragma GCC unroll 8
                for (int i = 0; i < M; i++) {
                    const Quantised& token = x[i * blocks];
                    Share<BITS, MINIMUM, FINE> share(token, FINE ? 2 * half + quarter : half);
                    if (FINE || quarter == 0)
#pragma GCC unroll 8
                        for (int q = 0; q < P * V; q++) whole[i][q] = share.start - VI{};
#pragma GCC unroll 4
                    for (int quad = 0; quad < 4; quad++) {
                        VI four = splat_word(token.codes + half * 32 + quarter * 16 + 4 * quad);
#pragma GCC unroll 8
                        for (int q = 0; q < P * V; q++) whole[i][q] = dot_quads(whole[i][q], w.codes[quad][q], four);
                    }
                    if (!FINE && quarter == 0) continue;
#pragma GCC unroll 8
                    for (int q = 0; q < P * V; q++) {
                        VF sum = __builtin_convertvector(whole[i][q], VF);
                        sums[i][q] = multiply_add(sum, w.scales[q] * share.scale, sums[i][q]);
                        if constexpr (MINIMUM) sums[i][q] = multiply_add(w.minima[q], share.total, sums[i][q]);
                    }
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
#pragma GCC unroll 8
        for (int q = 0; q < P * V; q++) sums[i][q] *= weight.unit;
        finish(to, m + i, p * PANEL, std::min(P * PANEL, weight.rows - p * PANEL), sums[i]);
    }
}

constexpr int TILE = 4;                      // tokens
constexpr int TILE_WIDTH = W == 16 ? 2 : 1;  // panels: as many sums and codes as fit into the registers

}  // namespace PARAGONE_LEVEL
