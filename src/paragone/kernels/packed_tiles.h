// Products of packed weights by some tokens with matrix units (AMX). A tile's sums are of 32 inputs, which have scales of
// their own, and have to go through memory to be brought to scale. So the codes of the block after the next are made
// ready, and the sums of the block before are brought to scale, while a block is multiplied, be they other panels'.
#pragma once

#include <vector>

#include "finish.h"
#include "packed.h"
#include "tiles.h"

#if PARAGONE_TILES

namespace PARAGONE_LEVEL {

constexpr long LEAST_OF_TILE = 7, LEAST_OF_TILES = 11;  // tokens, of half a tile and of more: fewer take others as long

// Panels by a tile of tokens, or half of one: sums that are those of panels_tile, to the bit.
template <int BITS, bool MINIMUM, int ROWS> class CodeTiles {
    static constexpr long SIZE = block_bytes(BITS, MINIMUM, false), AHEAD_OF_READING = 6144, RING = 4;
    // Four bits stay in the upper half of a byte: 16 times what they stand for.
    static constexpr bool RAISED = BITS == 4;

  public:
    // Half a tile of tokens is one product: their first 32 inputs of a block above the last 32, and zeros beside both.
    static constexpr bool STACKED = ROWS == TILE_ROWS / 2;

    // The first `there` of the tokens are there.
    CodeTiles(const Packed& weight, const Quantised* x, long there)
        : weight_(weight), blocks_((weight.D + BLOCK - 1) / BLOCK), x_(x), scales_(blocks_ * 2 * ROWS),
          totals_(MINIMUM ? blocks_ * 2 * ROWS : 0), stacks_(STACKED ? blocks_ : 0) {
        for (long b = 0; b < blocks_; b++)
            for (long half = 0; half < 2; half++)
                for (long i = 0; i < ROWS; i++) {
                    const Quantised& token = x[std::min(i, there - 1) * blocks_ + b];
                    scales_[(b * 2 + half) * ROWS + i] = token.scales[half];
                    if (MINIMUM) totals_[(b * 2 + half) * ROWS + i] = token.totals[2 * half + 1];
                    if (STACKED) std::memcpy(stacks_[b].rows[half * ROWS + i] + half * 32, token.codes + half * 32, 32);
                }
    }

    // Panels [first, last), each to done(panel, sums).
    template <class Done> PARAGONE_MEMBER void sum(long first, long last, Done done) {
        const long total = (last - first) * blocks_, gap = weight_.stride - blocks_ * SIZE;
        const uint8_t *ahead = weight_.panels + first * weight_.stride, *behind = ahead;
        long made = 0, of_panel = 0;
        auto unpack_next = [&]() __attribute__((always_inline)) {
            unpack(ahead, codes_[made++ % RING]);
            ahead += SIZE;
            if (++of_panel == blocks_) {
                of_panel = 0;
                ahead += gap;
            }
        };
        VF sums[ROWS] = {};
        unpack_next();
        if (made < total) unpack_next();
        long k = 0;
        for (long p = first; p < last; p++) {
            for (long b = 0; b < blocks_; b++, k++) {
                if (made < total) unpack_next();
                multiply(b, k, whole_[k % 2]);
                if (k == 0) continue;
                scale(behind, b ? b - 1 : blocks_ - 1, whole_[(k - 1) % 2], sums);
                behind += SIZE;
                if (b) continue;
                done(p - 1, sums);
                behind += gap;
            }
        }
        scale(behind, blocks_ - 1, whole_[(k - 1) % 2], sums);
        done(last - 1, sums);
    }

  private:
    typedef int32_t Whole[2][ROWS][PANEL];

    struct alignas(64) Stack {
        int8_t rows[TILE_ROWS][64] = {};
    };

    // Codes less their center, as tiles take them.
    PARAGONE_MEMBER void unpack(const uint8_t* block, uint8_t (&codes)[16][64]) const {
        for (long line = 0; line < SIZE; line += LINE) __builtin_prefetch(block + AHEAD_OF_READING + line, 0, 2);
        if constexpr (RAISED) {
            constexpr int AND_XOR = 0x6a;  // (a & b) ^ c
            const __m512i upper = _mm512_set1_epi8((char)0xf0), center = _mm512_set1_epi8((char)(MINIMUM ? 0 : 0x80));
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                __m512i both = (__m512i)load_words(block + 64 * i);
                uint8_t(*to)[64] = codes + i / 4 * 8 + i % 4;
                _mm512_store_si512(to[0], _mm512_ternarylogic_epi64(_mm512_slli_epi16(both, 4), upper, center, AND_XOR));
                _mm512_store_si512(to[4], _mm512_ternarylogic_epi64(both, upper, center, AND_XOR));
            }
            return;
        }
        const __m512i center = _mm512_set1_epi8((char)(meant(BITS) == 8 ? 128 : MINIMUM ? 0 : 8 << (stored(BITS) - 4)));
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; quarter++) {
            Quarter<BITS, MINIMUM, false, 1> w;
            w.fetch(weight_, block, 0, quarter / 2, quarter % 2);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                _mm512_store_si512(codes[4 * quarter + i], _mm512_sub_epi8((__m512i)w.codes[i][0], center));
        }
    }

#define PARAGONE_DOT(sums, a, b) \
    if constexpr (RAISED && MINIMUM) TILE_DOT_QUADS(sums, a, b); \
    else TILE_DOT_SIGNED(sums, a, b)
    PARAGONE_MEMBER void multiply(long b, long turn, Whole& whole) const {
        const uint8_t(&codes)[16][64] = codes_[turn % RING];
        if constexpr (STACKED) {
            int32_t(&all)[2 * ROWS][PANEL] = (int32_t(&)[2 * ROWS][PANEL])whole;
            if (turn % 2) {
                TILE_ZERO(1);
                TILE_LOAD(5, stacks_[b].rows, 64);
                TILE_LOAD(7, codes[0], 64);
                PARAGONE_DOT(1, 5, 7);
                TILE_STORE_TO(1, all);
            } else {
                TILE_ZERO(0);
                TILE_LOAD(4, stacks_[b].rows, 64);
                TILE_LOAD(6, codes[0], 64);
                PARAGONE_DOT(0, 4, 6);
                TILE_STORE_TO(0, all);
            }
            return;
        }
        const Quantised* tokens = x_ + b;
        long stride = blocks_ * sizeof *tokens;
        TILE_ZERO(0);
        TILE_LOAD(4, tokens->codes, stride);
        TILE_LOAD(6, codes[0], 64);
        PARAGONE_DOT(0, 4, 6);
        TILE_ZERO(1);
        TILE_LOAD(5, tokens->codes + BLOCK / 2, stride);
        TILE_LOAD(7, codes[8], 64);
        PARAGONE_DOT(1, 5, 7);
        TILE_STORE_TO(0, whole[0]);
        TILE_STORE_TO(1, whole[1]);
    }
#undef PARAGONE_DOT

    PARAGONE_MEMBER void scale(const uint8_t* block, long b, const Whole& whole, VF (&sums)[ROWS]) const {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const uint16_t* at = (const uint16_t*)(block + BLOCK * PANEL * stored(BITS) / 8) + half * PANEL;
            VF scales = load_half(at), minima{};
            if constexpr (MINIMUM) minima = load_half(at + 2 * PANEL);
            if constexpr (RAISED) scales *= 0x1p-4f;
            const float* mine = scales_.data() + (b * 2 + half) * ROWS;
            const float* totals = MINIMUM ? totals_.data() + (b * 2 + half) * ROWS : nullptr;
#pragma GCC unroll 16
            for (long i = 0; i < ROWS; i++) {
                VF sum = __builtin_convertvector(load_words(whole[half][i]), VF);
                sums[i] = multiply_add(sum, scales * mine[i], sums[i]);
                if constexpr (MINIMUM) sums[i] = multiply_add(minima, totals[i], sums[i]);
            }
        }
    }

    alignas(64) uint8_t codes_[RING][16][64];
    alignas(64) Whole whole_[2];
    const Packed& weight_;
    const long blocks_;
    const Quantised* x_;
    std::vector<float> scales_, totals_;
    std::vector<Stack> stacks_;
};

template <int BITS, bool MINIMUM, int ROWS>
static void codes_by_tiles(const Packed& w, long first, long last, const Quantised* x, long M, const Out& to) {
    long rows = std::min<long>(M, ROWS), blocks = (w.D + BLOCK - 1) / BLOCK;
    TileShapes shapes;
    constexpr bool STACKED = CodeTiles<BITS, MINIMUM, ROWS>::STACKED;
    for (int tile : {0, 1}) shapes.set(tile, STACKED ? TILE_ROWS : rows, 64);
    for (int tile : {4, 5}) shapes.set(tile, STACKED ? TILE_ROWS : rows, STACKED ? 64 : BLOCK / 2);
    for (int tile : {6, 7}) shapes.set(tile, STACKED ? TILE_ROWS : BLOCK / 8, 64);
    TileUse use(shapes);
    for (long done = 0, m; done < M; done = m + rows) {
        m = std::min(done, M - rows);  // the last ones may be tokens once more
        CodeTiles<BITS, MINIMUM, ROWS>(w, x + m * blocks, rows).sum(first, last, [&](long p, VF (&sums)[ROWS]) {
#pragma GCC unroll 16
            for (long i = 0; i < ROWS; i++) {
                VF out[1] = {sums[i] * w.unit};
                sums[i] = VF{};
                if (i >= done - m && i < rows) finish(to, m + i, p * PANEL, std::min(PANEL, w.rows - p * PANEL), out);
            }
        });
    }
}

}  // namespace PARAGONE_LEVEL

#endif
