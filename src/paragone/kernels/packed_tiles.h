// Products of packed weights by some tokens with matrix units (AMX). A tile's sums are of 32 inputs, which have scales of
// their own, and have to go through memory to be brought to scale. So the codes of the block after the next are made
// ready, and the sums of the block before are brought to scale, while a block is multiplied.
#pragma once

#include "finish.h"
#include "packed.h"
#include "tiles.h"

#if PARAGONE_TILES

namespace PARAGONE_LEVEL {

constexpr long LEAST_OF_TILE = 11;  // tokens: fewer are multiplied sooner without tiles

// A panel by a tile of tokens: sums that are those of panels_tile, to the bit.
template <int BITS, bool MINIMUM> class CodeTiles {
    static constexpr long SIZE = block_bytes(BITS, MINIMUM, false), AHEAD_OF_READING = 4096;

  public:
    // The first `there` of the tokens are there.
    CodeTiles(const Packed& weight, long p, const Quantised* x, long there)
        : weight_(weight), blocks_((weight.D + BLOCK - 1) / BLOCK), panel_(weight.panels + p * weight.stride), x_(x) {
        for (long i = 0; i < TILE_ROWS; i++) tokens_[i] = x + std::min(i, there - 1) * blocks_;
    }

    PARAGONE_MEMBER void sum(VF (&sums)[TILE_ROWS]) {
        for (long b = 0; b < std::min(2L, blocks_); b++) unpack(b);
        for (long b = 0; b < blocks_; b++) {
            if (b + 2 < blocks_) unpack(b + 2);
            multiply(b);
            if (b) scale(b - 1, sums);
        }
        scale(blocks_ - 1, sums);
    }

  private:
    // Codes less their center, as tiles take them.
    PARAGONE_MEMBER void unpack(long b) {
        const __m512i center = _mm512_set1_epi8((char)(meant(BITS) == 8 ? 128 : MINIMUM ? 0 : 8 << (stored(BITS) - 4)));
        const uint8_t* block = panel_ + b * SIZE;
        for (long line = 0; line < SIZE; line += LINE) __builtin_prefetch(block + AHEAD_OF_READING + line, 0, 2);
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; quarter++) {
            Quarter<BITS, MINIMUM, false, 1> w;
            w.fetch(weight_, block, 0, quarter / 2, quarter % 2);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                _mm512_store_si512(codes_[b % 4][4 * quarter + i], _mm512_sub_epi8((__m512i)w.codes[i][0], center));
        }
    }

    PARAGONE_MEMBER void multiply(long b) {
        const uint8_t(&codes)[16][64] = codes_[b % 4];
        int32_t(&whole)[2][TILE_ROWS][PANEL] = whole_[b % 2];
        const Quantised* token = x_ + b;
        long stride = blocks_ * sizeof *token;
        TILE_ZERO(0);
        TILE_LOAD(4, token->codes, stride);
        TILE_LOAD(6, codes[0], 64);
        TILE_DOT_SIGNED(0, 4, 6);
        TILE_ZERO(1);
        TILE_LOAD(5, token->codes + BLOCK / 2, stride);
        TILE_LOAD(7, codes[8], 64);
        TILE_DOT_SIGNED(1, 5, 7);
        TILE_STORE_TO(0, whole[0]);
        TILE_STORE_TO(1, whole[1]);
    }

    PARAGONE_MEMBER void scale(long b, VF (&sums)[TILE_ROWS]) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const uint16_t* at = (const uint16_t*)(panel_ + b * SIZE + BLOCK * PANEL * stored(BITS) / 8) + half * PANEL;
            VF scales = load_half(at), minima{};
            if constexpr (MINIMUM) minima = load_half(at + 2 * PANEL);
#pragma GCC unroll 16
            for (long i = 0; i < TILE_ROWS; i++) {
                const Quantised& token = tokens_[i][b];
                VF sum = __builtin_convertvector(load_words(whole_[b % 2][half][i]), VF);
                sums[i] = multiply_add(sum, scales * token.scales[half], sums[i]);
                if constexpr (MINIMUM) sums[i] = multiply_add(minima, token.totals[2 * half + 1], sums[i]);
            }
        }
    }

    alignas(64) uint8_t codes_[4][16][64];
    alignas(64) int32_t whole_[2][2][TILE_ROWS][PANEL];
    const Packed& weight_;
    long blocks_;
    const uint8_t* panel_;
    const Quantised *x_, *tokens_[TILE_ROWS];
};

template <int BITS, bool MINIMUM>
static void codes_by_tiles(const Packed& w, long first, long last, const Quantised* x, long M, const Out& to) {
    long rows = std::min(M, TILE_ROWS), blocks = (w.D + BLOCK - 1) / BLOCK;
    TileShapes shapes;
    for (int tile : {0, 1}) shapes.set(tile, rows, 64);
    for (int tile : {4, 5}) shapes.set(tile, rows, BLOCK / 2);
    for (int tile : {6, 7}) shapes.set(tile, BLOCK / 8, 64);
    TileUse use(shapes);
    for (long p = first; p < last; p++)
        for (long done = 0, m; done < M; done = m + rows) {
            m = std::min(done, M - rows);  // the last ones may be tokens once more
            VF sums[TILE_ROWS] = {};
            CodeTiles<BITS, MINIMUM>(w, p, x + m * blocks, rows).sum(sums);
#pragma GCC unroll 16
            for (long i = 0; i < TILE_ROWS; i++) {
                VF out[1] = {sums[i] * w.unit};
                if (i >= done - m && i < rows) finish(to, m + i, p * PANEL, std::min(PANEL, w.rows - p * PANEL), out);
            }
        }
}

}  // namespace PARAGONE_LEVEL

#endif
