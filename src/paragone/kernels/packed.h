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

#include "tiles.h"

namespace PARAGONE_LEVEL {

constexpr long BLOCK = 64;    // inputs
constexpr int QUADS = 8;      // runs of four inputs in a half of a block
constexpr long LINE = 64;     // bytes that memory gives at a time
constexpr long AHEAD = 2048;  // bytes that a single token fetches before it needs them

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
        for (int half = 0; half < 2; half++) {
            float first = totals[2 * half], whole = first + totals[2 * half + 1];
            to->totals[2 * half] = to->scales[half] * first;
            to->totals[2 * half + 1] = to->scales[half] * whole;
            for (int i = 0; i < 2; i++) {
                float codes = i ? whole : first;
                int32_t sum = std::fabs(codes) <= 32 * 128 ? (int32_t)codes : 0;  // it may not be a number
                to->start8[2 * half + i] = -8 * sum;
                to->start128[2 * half + i] = -128 * sum;
            }
        }
    }
}

// What P panels, `stride` bytes apart, have of a quarter of a block, which is at most what one scale is for.
template <int BITS, bool MINIMUM, bool FINE, int P> struct Quarter {
    static constexpr long SCALES = FINE ? 2 : 1;  // of a half
    VI codes[4][P * V];
    VF scales[P * V], minima[P * V];

    PARAGONE_MEMBER void fetch(const uint8_t* panel, long stride, int half, int quarter) {
#pragma GCC unroll 8
        for (int q = 0; q < P * V; q++) {
            const uint8_t* block = panel + q / V * stride;
            long lanes = q % V * W;
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                if constexpr (BITS == 4) {
                    VI both = load_words(block + (half * 4 + i) * 64 + lanes * 4);
                    codes[i][q] = (quarter ? (VI)((VU)both >> 4) : both) & 0x0f0f0f0f;
                } else {
                    codes[i][q] = load_words(block + (half * 8 + quarter * 4 + i) * 64 + lanes * 4);
                }
            const uint16_t* at = (const uint16_t*)(block + BLOCK * PANEL * BITS / 8) + lanes;
            long scale = half * SCALES + (FINE ? quarter : 0);
            scales[q] = load_half(at + scale * PANEL);
            if constexpr (MINIMUM) minima[q] = load_half(at + (scale + 2 * SCALES) * PANEL);
        }
    }
};

// What is fetched while other things are multiplied: so many lines for every block of them, up to an end.
template <bool ONCE> struct Coming {
    const uint8_t *at, *end;
    long lines;

    PARAGONE_MEMBER void fetch_some() {
        if (at >= end) return;
        // What a single token reads nobody wants again before the next: it is to push nothing else out. What many
        // tokens read waits in the second cache, or it would push out what they read now.
        for (long line = 0; line < lines; line++, at += LINE) __builtin_prefetch(at, 0, ONCE ? 0 : 2);
    }
};

// Panels [p, p + P) by tokens [m, m + M).
template <int BITS, bool MINIMUM, bool FINE, int P, int M, bool ONCE>
static void panels_tile(const Packed& weight, long p, const Quantised* x, long m, const Out& to, Coming<ONCE>& coming) {
    constexpr long SIZE = block_bytes(BITS, MINIMUM, FINE);
    constexpr bool CENTERED = BITS == 8 || !MINIMUM;
    long blocks = (weight.D + BLOCK - 1) / BLOCK, stride = blocks * SIZE;
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
                w.fetch(panel, stride, half, quarter);
#pragma GCC unroll 8
                for (int i = 0; i < M; i++) {
                    const Quantised& token = x[i * blocks];
                    if (FINE || quarter == 0) {
                        // Codes less their center, times x: what the center gives is where the sum begins.
                        const int32_t* start = (BITS == 4 ? token.start8 : token.start128) + 2 * half;
                        VI begin = {};
                        if constexpr (CENTERED) begin = splat_word(start + (FINE ? 0 : 1));
                        if (CENTERED && quarter == 1) begin = splat_word(start + 1) - begin;
#pragma GCC unroll 8
                        for (int q = 0; q < P * V; q++) whole[i][q] = begin;
                    }
#pragma GCC unroll 4
                    for (int quad = 0; quad < 4; quad++) {
                        VI four = splat_word(token.codes + half * 32 + quarter * 16 + 4 * quad);
#pragma GCC unroll 8
                        for (int q = 0; q < P * V; q++) whole[i][q] = dot_quads(whole[i][q], w.codes[quad][q], four);
                    }
                    if (!FINE && quarter == 0) continue;
                    const float* totals = token.totals + 2 * half;
                    float total = FINE ? quarter ? totals[1] - totals[0] : totals[0] : totals[1];
#pragma GCC unroll 8
                    for (int q = 0; q < P * V; q++) {
                        sums[i][q] += __builtin_convertvector(whole[i][q], VF) * (w.scales[q] * token.scales[half]);
                        if constexpr (MINIMUM) sums[i][q] += w.minima[q] * total;
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

#if PARAGONE_TILES
constexpr long TOKENS = 4 * TILE_ROWS;  // whose sums with a panel are made at once

// A panel by M tokens, with tiles. The sums are those of panels_tile, to the bit.
template <int BITS, bool MINIMUM, bool FINE>
static void panel_tiles(const Packed& weight, long p, const Quantised* x, long M, const Out& to) {
    constexpr long SIZE = block_bytes(BITS, MINIMUM, FINE), INPUTS = FINE ? 16 : 32;  // of one scale
    constexpr bool CENTERED = BITS == 8 || !MINIMUM;
    long blocks = (weight.D + BLOCK - 1) / BLOCK;
    TileShapes shapes;
    for (int tile = 0; tile < 4; tile++) shapes.set(tile, TILE_ROWS, 64);
    shapes.set(4, TILE_ROWS, INPUTS);
    shapes.set(5, INPUTS / 4, 64);
    TileUse use(shapes);
    alignas(64) int32_t whole[TOKENS][PANEL];
    alignas(64) uint8_t codes[INPUTS / 4][64], rest[TILE_ROWS][INPUTS];
    for (long m = 0; m < M; m += TOKENS) {
        long tokens = std::min(TOKENS, M - m);
        VF sums[TOKENS] = {};
        for (long b = 0; b < blocks; b++) {
            const uint8_t* block = weight.panels + (p * blocks + b) * SIZE;
            const Quantised* token = x + m * blocks + b;
            for (int part = 0; part < BLOCK / INPUTS; part++) {
                int half = FINE ? part / 2 : part, quarter = FINE ? part % 2 : 0;
                Quarter<BITS, MINIMUM, FINE, 1> w;
                for (int i = 0; i < INPUTS / 16; i++) {
                    w.fetch(block, 0, half, quarter + i);
                    std::memcpy(codes[4 * i], w.codes, sizeof w.codes);
                }
                // Sixteen tokens' codes: where they lie, or without reading behind the last.
                auto inputs = [&](long t) -> const void* {
                    if (t + TILE_ROWS <= tokens) return token[t * blocks].codes + part * INPUTS;
                    for (long i = t; i < tokens; i++)
                        std::memcpy(rest[i - t], token[i * blocks].codes + part * INPUTS, INPUTS);
                    return rest;
                };
                auto stride = [&](long t) { return t + TILE_ROWS <= tokens ? blocks * (long)sizeof *token : INPUTS; };
                TILE_LOAD(5, codes, 64);
#define PARAGONE_MULTIPLY(tile)     if (tile * TILE_ROWS < tokens) {         TILE_ZERO(tile);         const void* a = inputs(tile * TILE_ROWS);         TILE_LOAD(4, a, stride(tile * TILE_ROWS));         TILE_DOT_QUADS(tile, 4, 5);         TILE_STORE(tile, whole[tile * TILE_ROWS], 64);     }
                PARAGONE_MULTIPLY(0)
                PARAGONE_MULTIPLY(1)
                PARAGONE_MULTIPLY(2)
                PARAGONE_MULTIPLY(3)
#undef PARAGONE_MULTIPLY
                for (long i = 0; i < tokens; i++) {
                    const Quantised& t = token[i * blocks];
                    const int32_t* start = (BITS == 4 ? t.start8 : t.start128) + 2 * half;
                    const float* totals = t.totals + 2 * half;
                    VI sum = load_words(whole[i]);
                    if constexpr (CENTERED) sum += FINE ? quarter ? start[1] - start[0] : start[0] : start[1];
                    sums[i] += __builtin_convertvector(sum, VF) * (w.scales[0] * t.scales[half]);
                    float total = FINE ? quarter ? totals[1] - totals[0] : totals[0] : totals[1];
                    if constexpr (MINIMUM) sums[i] += w.minima[0] * total;
                }
            }
        }
        for (long i = 0; i < tokens; i++) {
            VF out[1] = {sums[i] * weight.unit};
            finish(to, m + i, p * PANEL, std::min(PANEL, weight.rows - p * PANEL), out);
        }
    }
}
#endif

constexpr int TILE = 4;                         // tokens
constexpr int TILE_WIDTH = W == 16 ? 2 : 1;  // panels: as many sums and codes as fit into the registers

template <int BITS, bool MINIMUM, bool FINE>
static void panels_times(const Packed& w, long first, long last, const Quantised* x, long M, const Out& to) {
    constexpr long LINES = block_bytes(BITS, MINIMUM, FINE) / LINE;  // of a block of one panel
    long stride = (w.D + BLOCK - 1) / BLOCK * LINES * LINE, p = first;
    if (M == 1) {
        for (; p < last; p++) {
            const uint8_t* from = w.panels + p * stride + AHEAD;
            Coming<true> coming{from, from + stride, LINES};
            panels_tile<BITS, MINIMUM, FINE, 1, 1>(w, p, x, 0, to, coming);
        }
        return;
    }
    // While all tokens pass these panels, the next ones come.
    auto tokens = [&]<int P>(long p) {
        const uint8_t* from = w.panels + (p + P) * stride;
        long m = 0, tiles = M / TILE + M % TILE / 2 + M % 2;
        Coming<false> coming{from, from + P * stride, (P * LINES + tiles - 1) / tiles};
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
