// Products of packed weights where one instruction multiplies four bytes in each lane and adds them up.
//
// Few tokens are multiplied with codes as they lie. Of more, what a few panels hold is first spread out, once for all
// tokens, where bringing codes to bytes takes time from products.
#pragma once

#include <climits>
#include <vector>

#include "each.h"
#include "finish.h"
#include "packed.h"

namespace PARAGONE_LEVEL {

constexpr int QUARTERS = 4;  // of a block

// Panels as they lie, P of them, `stride` bytes apart: their codes become bytes where they are multiplied.
template <int BITS, bool MINIMUM, bool FINE, int P> struct AsTheyLie {
    const Packed& weight;
    const uint8_t* panel;
    long stride;

    struct Its {
        const AsTheyLie& all;
        const uint8_t* block;
        int half, quarter;

        PARAGONE_MEMBER VI code(int quad, int q) const { return of(q).code(all.weight, quad, q % V); }
        PARAGONE_MEMBER VF scale(int q) const { return of(q).scale(q % V); }
        PARAGONE_MEMBER VF minimum(int q) const { return of(q).minimum(q % V); }

      private:
        PARAGONE_MEMBER PanelQuarter<BITS, MINIMUM, FINE> of(int q) const {
            return {block + q / V * all.stride, half, quarter};
        }
    };
    PARAGONE_MEMBER Its at(long b, int quarter) const {
        return {*this, panel + b * block_bytes(BITS, MINIMUM, FINE), quarter / 2, quarter % 2};
    }
};

// The same, spread out.
template <int BITS, bool MINIMUM, bool FINE, int P> struct Spread {
    const Quarter<BITS, MINIMUM, FINE, P>* quarters;

    struct Its {
        const Quarter<BITS, MINIMUM, FINE, P>& all;

        PARAGONE_MEMBER VI code(int quad, int q) const { return all.codes[quad][q]; }
        PARAGONE_MEMBER VF scale(int q) const { return all.scales[q]; }
        PARAGONE_MEMBER VF minimum(int q) const { return all.minima[q]; }
    };
    PARAGONE_MEMBER Its at(long b, int quarter) const { return {quarters[b * QUARTERS + quarter]}; }
};

// Panels [p, p + P) by tokens [m, m + M).
template <int BITS, bool MINIMUM, bool FINE, int P, int M, class Panels>
static void panels_tile(const Packed& weight, const Panels& panels, long p, const Quantised* x, long m, const Out& to,
                        Coming& coming) {
    long blocks = (weight.D + BLOCK - 1) / BLOCK;
    x += m * blocks;
    VF sums[M][P * V] = {};
    for (long b = 0; b < blocks; b++, x++) {
        coming.fetch_some();
        for (int half = 0; half < 2; half++) {
            VI whole[M][P * V];
#pragma GCC unroll 2
            for (int quarter = 0; quarter < 2; quarter++) {
                const auto w = panels.at(b, 2 * half + quarter);
                const int part = FINE ? 2 * half + quarter : half;
                if (FINE || quarter == 0)
#pragma GCC unroll 8
                    for (int i = 0; i < M; i++)
#pragma GCC unroll 8
                        for (int q = 0; q < P * V; q++)
                            whole[i][q] = Share<BITS, MINIMUM, FINE>(x[i * blocks], part).start - VI{};
#pragma GCC unroll 4
                for (int quad = 0; quad < 4; quad++) {
                    VI codes[P * V];
#pragma GCC unroll 8
                    for (int q = 0; q < P * V; q++) codes[q] = w.code(quad, q);
#pragma GCC unroll 8
                    for (int i = 0; i < M; i++) {
                        VI four = splat_word(x[i * blocks].codes + half * 32 + quarter * 16 + 4 * quad);
#pragma GCC unroll 8
                        for (int q = 0; q < P * V; q++) whole[i][q] = dot_quads(whole[i][q], codes[q], four);
                    }
                }
                if (!FINE && quarter == 0) continue;
                VF scales[P * V], minima[P * V];
#pragma GCC unroll 8
                for (int q = 0; q < P * V; q++) {
                    scales[q] = w.scale(q);
                    if constexpr (MINIMUM) minima[q] = w.minimum(q);
                }
#pragma GCC unroll 8
                for (int i = 0; i < M; i++) {
                    Share<BITS, MINIMUM, FINE> share(x[i * blocks], part);
#pragma GCC unroll 8
                    for (int q = 0; q < P * V; q++) {
                        VF sum = __builtin_convertvector(whole[i][q], VF);
                        sums[i][q] = multiply_add(sum, scales[q] * share.scale, sums[i][q]);
                        if constexpr (MINIMUM) sums[i][q] = multiply_add(minima[q], share.total, sums[i][q]);
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

// Tokens and panels: sums of eight or more do not wait for each other; codes and sums together are more than fit into
// the registers, but the sums of a half are needed only at its end.
constexpr int TILE = W == 16 ? 8 : 4;
constexpr int TILE_WIDTH = W == 16 ? 2 : 1;

// How many tokens take codes spread out. AMD's cores shift and mask beside products, Intel's in their place.
template <int BITS>
constexpr long LEAST_TO_SPREAD = W < 16 || stored(BITS) == 8 ? LONG_MAX
                                 : PARAGONE_TILES || !PAIRS  ? 3 * TILE + 1
                                 : stored(BITS) == 4         ? LONG_MAX
                                                             : 6 * TILE;

// Panels [p, p + P) by all M tokens, which pass them in tiles.
template <int BITS, bool MINIMUM, bool FINE, int P>
static void pass_panels(const Packed& w, long p, const Quantised* x, long M, const Out& to, Coming& coming) {
    const uint8_t* here = w.panels + p * w.stride;
    AsTheyLie<BITS, MINIMUM, FINE, P> panels{w, here, w.stride};
    if constexpr (P == TILE_WIDTH && LEAST_TO_SPREAD<BITS> < LONG_MAX)
        if (M >= LEAST_TO_SPREAD<BITS>) {
            long blocks = (w.D + BLOCK - 1) / BLOCK;
            static thread_local std::vector<Quarter<BITS, MINIMUM, FINE, P>> room;
            if ((long)room.size() < blocks * QUARTERS) room.resize(blocks * QUARTERS);
            for (long b = 0; b < blocks; b++)
#pragma GCC unroll 4
                for (int q = 0; q < QUARTERS; q++)
                    room[b * QUARTERS + q].fetch(w, here + b * block_bytes(BITS, MINIMUM, FINE), w.stride, q / 2,
                                                 q % 2);
            Spread<BITS, MINIMUM, FINE, P> spread{room.data()};
            return tiles_of<TILE>(M, [&]<int COUNT>(long m) {
                panels_tile<BITS, MINIMUM, FINE, P, COUNT>(w, spread, p, x, m, to, coming);
            });
        }
    tiles_of<TILE>(M, [&]<int COUNT>(long m) {
        panels_tile<BITS, MINIMUM, FINE, P, COUNT>(w, panels, p, x, m, to, coming);
    });
}

}  // namespace PARAGONE_LEVEL
