// Products of packed weights by many tokens with matrix units (AMX).
#pragma once

#include "finish.h"
#include "packed.h"
#include "tiles.h"

namespace PARAGONE_LEVEL {

constexpr long TOKENS = 4 * TILE_ROWS;  // whose sums with a panel are made at once

// A panel by M tokens, with tiles. The sums are those of panels_tile, to the bit.
template <int BITS, bool MINIMUM, bool FINE>
static void panel_tiles(const Packed& weight, long p, const Quantised* x, long M, const Out& to) {
    constexpr long SIZE = block_bytes(BITS, MINIMUM, FINE), INPUTS = FINE ? 16 : 32;  // of one scale
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
                    w.fetch(weight, block, 0, half, quarter + i);
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
#define PARAGONE_MULTIPLY(tile)                                       \
    if (tile * TILE_ROWS < tokens) {                                  \
        TILE_ZERO(tile);                                              \
        const void* a = inputs(tile * TILE_ROWS);                     \
        TILE_LOAD(4, a, stride(tile * TILE_ROWS));                    \
        TILE_DOT_QUADS(tile, 4, 5);                                   \
        TILE_STORE(tile, whole[tile * TILE_ROWS], 64);                \
    }
                PARAGONE_MULTIPLY(0)
                PARAGONE_MULTIPLY(1)
                PARAGONE_MULTIPLY(2)
                PARAGONE_MULTIPLY(3)
#undef PARAGONE_MULTIPLY
                for (long i = 0; i < tokens; i++) {
                    Share<BITS, MINIMUM, FINE> share(token[i * blocks], part);
                    VI sum = (VI)load_words(whole[i]) + share.start;
                    sums[i] = multiply_add(__builtin_convertvector(sum, VF), w.scales[0] * share.scale, sums[i]);
                    if constexpr (MINIMUM) sums[i] = multiply_add(w.minima[0], share.total, sums[i]);
                }
            }
        }
        for (long i = 0; i < tokens; i++) {
            VF out[1] = {sums[i] * weight.unit};
            finish(to, m + i, p * PANEL, std::min(PANEL, weight.rows - p * PANEL), out);
        }
    }
}

}  // namespace PARAGONE_LEVEL
