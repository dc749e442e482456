// Weights in four or eight bits, laid out for instructions that multiply four bytes in each lane, and their
// products with activations in eight bits.
//
// Sixteen rows are a panel; a lane is a row. A panel is a run of blocks of 64 inputs: codes, then scales, then, in
// asymmetric formats, minima: weight = scale * (code - CENTER) + minimum. Codes are unsigned; the four inputs of a
// lane are neighbours. In four bits, a half of a block (32 inputs) is four registers whose low halves of bytes hold
// the first sixteen inputs and whose high halves the others. Scales and minima are float16, in units that the
// matrix names, one for every 32 inputs, or, where `fine`, for every 16. So every sum of products of one scale is
// made of integers alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "table.h"
#include "vec.h"

namespace PARAGONE_LEVEL {

constexpr long BLOCK = 64;    // inputs
constexpr int QUADS = 8;      // runs of four inputs in a half of a block
constexpr long AHEAD = 2048;  // bytes that are fetched before they are needed

PARAGONE_INLINE constexpr long block_bytes(int bits, bool has_minimum, bool fine) {
    return BLOCK * PANEL * bits / 8 + (fine ? 4 : 2) * (has_minimum ? 2 : 1) * PANEL * 2;
}

// One token's activations in eight bits.
static void quantize_inputs(const float* x, long D, Quantised* to) {
    constexpr int REGISTERS = 16 / W;  // of a quarter of a block, which is what sums are made of
    for (long d = 0; d < D; d += BLOCK, to++) {
        float own[BLOCK] = {};
        const float* from = x + d;
        if (d + BLOCK > D) {
            std::memcpy(own, from, (D - d) * sizeof *x);
            from = own;
        }
        VF sums[4];
        for (int half = 0; half < 2; half++) {
            // Sizes compare as whole numbers do, and what is not a number is the largest.
            VI most = {};
            for (long i = 0; i < 32; i += W) {
                VI size = (VI)load(from + 32 * half + i) & 0x7fffffff;
                most = size > most ? size : most;
            }
            float top = as_float(largest_of(most));
            to->scales[half] = top / 127.0f;
            float inverse = top > 0 ? 127.0f / top : 0.0f;
            for (int quarter = 2 * half; quarter < 2 * half + 2; quarter++) {
                sums[quarter] = VF{};
                for (int i = 0; i < REGISTERS; i++) {
                    long at = 16 * quarter + i * W;
                    VF shifted = load(from + at) * inverse + WHOLE;
                    store_bytes(to->codes + at, (VI)shifted - WHOLE_BITS);
                    sums[quarter] += shifted - WHOLE;
                }
            }
        }
        float totals[4];
        sum4(sums[0], sums[1], sums[2], sums[3], totals);
        for (int quarter = 0; quarter < 4; quarter++) {
            to->totals[quarter] = to->scales[quarter / 2] * totals[quarter];
            to->start8[quarter] = -8 * (int32_t)totals[quarter];
            to->start128[quarter] = -128 * (int32_t)totals[quarter];
        }
    }
}

// The codes, scales and minima of half a block of a panel.
template <int BITS, bool MINIMUM, bool FINE> struct Half {
    static constexpr int SCALES = FINE ? 2 : 1;
    VI codes[QUADS][V];
    VF scales[SCALES][V], minima[SCALES][V];

    PARAGONE_MEMBER void fetch(const uint8_t* block, int half) {
        for (int v = 0; v < V; v++)
            if constexpr (BITS == 4)
                for (int i = 0; i < 4; i++) {
                    VI both = load_words(block + (half * 4 + i) * 64 + v * W * 4);
                    codes[i][v] = both & 0x0f0f0f0f;
                    codes[i + 4][v] = (VI)((VU)both >> 4) & 0x0f0f0f0f;
                }
            else
                for (int i = 0; i < QUADS; i++) codes[i][v] = load_words(block + (half * 8 + i) * 64 + v * W * 4);
        const uint16_t* at = (const uint16_t*)(block + BLOCK * PANEL * BITS / 8) + half * SCALES * PANEL;
        for (int s = 0; s < SCALES; s++)
            for (int v = 0; v < V; v++) {
                scales[s][v] = load_half(at + s * PANEL + v * W);
                if constexpr (MINIMUM) minima[s][v] = load_half(at + (s + 2 * SCALES) * PANEL + v * W);
            }
    }

    // Adds what it gives with half a block of a token, whose codes are words, each in all lanes.
    PARAGONE_MEMBER void add(VF (&sums)[V], const Quantised& x, int half, const VI (&words)[QUADS]) const {
        const int32_t* start = (BITS == 4 ? x.start8 : x.start128) + 2 * half;
        const float *totals = x.totals + 2 * half, scale = x.scales[half];
        for (int v = 0; v < V; v++) {
            VI first = {}, second = {};
            if constexpr (BITS == 8 || !MINIMUM) {
                first = splat_word(start);
                second = splat_word(start + 1);
            }
            for (int i = 0; i < 4; i++) {
                first = dot_quads(first, codes[i][v], words[i]);
                second = dot_quads(second, codes[i + 4][v], words[i + 4]);
            }
            if constexpr (FINE) {
                sums[v] += __builtin_convertvector(first, VF) * (scales[0][v] * scale);
                sums[v] += __builtin_convertvector(second, VF) * (scales[1][v] * scale);
                if constexpr (MINIMUM) sums[v] += minima[0][v] * totals[0];
                if constexpr (MINIMUM) sums[v] += minima[1][v] * totals[1];
            } else {
                sums[v] += __builtin_convertvector(first + second, VF) * (scales[0][v] * scale);
                if constexpr (MINIMUM) sums[v] += minima[0][v] * (totals[0] + totals[1]);
            }
        }
    }
};

// P panels, `stride` bytes apart, by M tokens, the first that see them or not: later ones find them in a near cache.
template <int BITS, bool MINIMUM, bool FINE, int P, int M>
static void panels_tile(const uint8_t* panel, long stride, long blocks, const Quantised* x, float unit, bool is_first,
                        float (&out)[M][P * PANEL]) {
    constexpr long SIZE = block_bytes(BITS, MINIMUM, FINE);
    VF sums[M][P][V] = {};
    for (long b = 0; b < blocks; b++, panel += SIZE) {
        if (is_first)
            for (int p = 0; p < P; p++)
                for (long i = 0; i < SIZE; i += 64) __builtin_prefetch(panel + p * stride + AHEAD + i);
        for (int half = 0; half < 2; half++) {
            Half<BITS, MINIMUM, FINE> w[P];
            for (int p = 0; p < P; p++) w[p].fetch(panel + p * stride, half);
            for (int m = 0; m < M; m++) {
                const Quantised& token = x[m * blocks + b];
                VI words[QUADS];
                for (int i = 0; i < QUADS; i++) words[i] = splat_word(token.codes + half * 32 + 4 * i);
                for (int p = 0; p < P; p++) w[p].add(sums[m][p], token, half, words);
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++)
            for (int v = 0; v < V; v++) store(out[m] + p * PANEL + v * W, sums[m][p][v] * unit);
}

constexpr int TILE = 4;                         // tokens
constexpr int TILE_WIDTH = W == 16 ? 2 : 1;  // panels: as many sums and codes as fit into the registers

template <int BITS, bool MINIMUM, bool FINE>
static void panels_times(const Packed& w, long first, long last, const Quantised* x, long M, const Out& to) {
    long blocks = (w.D + BLOCK - 1) / BLOCK, size = blocks * block_bytes(BITS, MINIMUM, FINE);
    auto tile = [&]<int P, int COUNT>(long p, long m) {
        float out[COUNT][P * PANEL];
        panels_tile<BITS, MINIMUM, FINE, P, COUNT>(w.panels + p * size, size, blocks, x + m * blocks, w.unit, m == 0,
                                                   out);
        for (int i = 0; i < COUNT; i++) finish(to, m + i, p * PANEL, std::min(P * PANEL, w.rows - p * PANEL), out[i]);
    };
    auto some = [&]<int COUNT>(long m) {
        long p = first;
        if constexpr (COUNT == TILE)
            for (; p + TILE_WIDTH <= last; p += TILE_WIDTH) tile.template operator()<TILE_WIDTH, COUNT>(p, m);
        for (; p < last; p++) tile.template operator()<1, COUNT>(p, m);
    };
    long m = 0;
    for (; m + TILE <= M; m += TILE) some.template operator()<TILE>(m);
    if (m + 2 <= M) {
        some.template operator()<2>(m);
        m += 2;
    }
    if (m < M) some.template operator()<1>(m);
}

// Panels [first, last) of the weight by M tokens.
static void packed_linear(const Packed& w, long first, long last, const Quantised* x, long M, const Out& to) {
    auto run = w.bits == 4 ? w.has_minimum ? w.fine ? panels_times<4, true, true> : panels_times<4, true, false>
                             : w.fine      ? panels_times<4, false, true>
                                           : panels_times<4, false, false>
               : w.has_minimum ? w.fine ? panels_times<8, true, true> : panels_times<8, true, false>
               : w.fine        ? panels_times<8, false, true>
                               : panels_times<8, false, false>;
    run(w, first, last, x, M, to);
}

}  // namespace PARAGONE_LEVEL
