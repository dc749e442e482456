// Tiles: eight registers of up to 16 rows of 64 bytes, and products of whole tiles (Intel AMX: Intel 64 and IA-32
// Architectures Software Developer's Manual, volume 1, chapter 18). PARAGONE_TILES is 1 where the compiler makes
// instructions of them; where it is 2 they are computed in software, slowly: so that what is built from tiles is
// tested on processors without them.
#pragma once

#include "finish.h"

#if PARAGONE_TILES

namespace PARAGONE_LEVEL {

constexpr long TILE_ROWS = 16;  // tokens; and words of 32 bits in a row

// How many rows and bytes of a row each tile has, as the processor wants it said.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    constexpr void set(int tile, int its_rows, int its_row_bytes) {
        rows[tile] = (uint8_t)its_rows;
        row_bytes[tile] = (uint16_t)its_row_bytes;
    }
};
static_assert(sizeof(TileShapes) == 64);

#if PARAGONE_TILES == 1

// Loading reads memory that compilers do not know of.
#define TILE_LOAD(tile, from, stride) \
    do { \
        asm volatile("" ::: "memory"); \
        _tile_loadd(tile, from, stride); \
    } while (0)
#define TILE_STORE(tile, to, stride) \
    do { \
        _tile_stored(tile, to, stride); \
        asm volatile("" ::: "memory"); \
    } while (0)
#define TILE_ZERO(tile) _tile_zero(tile)
// sums += a . b: signed bytes of a by unsigned ones of b, four in each lane; bfloat16 by bfloat16, two in each lane.
#define TILE_DOT_QUADS(sums, a, b) _tile_dpbsud(sums, a, b)
#define TILE_DOT_PAIRS(sums, a, b) _tile_dpbf16ps(sums, a, b)

// The tiles have these shapes as long as it lives.
struct TileUse {
    explicit TileUse(const TileShapes& shapes) {
        asm volatile("" : : "r"(&shapes) : "memory");  // all of it is read
        _tile_loadconfig(&shapes);
    }
    ~TileUse() { _tile_release(); }
};

#else

struct SoftwareTiles {
    TileShapes shapes;
    uint8_t at[8][16][64];

    void load(int t, const void* from, long stride) {
        std::memset(at[t], 0, sizeof at[t]);
        for (int r = 0; r < shapes.rows[t]; r++)
            std::memcpy(at[t][r], (const uint8_t*)from + r * stride, shapes.row_bytes[t]);
    }
    void store(int t, void* to, long stride) const {
        for (int r = 0; r < shapes.rows[t]; r++)
            std::memcpy((uint8_t*)to + r * stride, at[t][r], shapes.row_bytes[t]);
    }
    template <class Sum, class Add> void dot(int sums, int a, int b, Add add) {
        for (int m = 0; m < shapes.rows[sums]; m++)
            for (int n = 0; n < shapes.row_bytes[sums] / 4; n++) {
                Sum sum;
                std::memcpy(&sum, at[sums][m] + 4 * n, 4);
                for (int k = 0; k < shapes.row_bytes[a] / 4; k++) sum = add(sum, at[a][m] + 4 * k, at[b][k] + 4 * n);
                std::memcpy(at[sums][m] + 4 * n, &sum, 4);
            }
    }
    void dot_quads(int sums, int a, int b) {
        dot<int32_t>(sums, a, b, [](int32_t sum, const uint8_t* x, const uint8_t* w) {
            for (int i = 0; i < 4; i++) sum += (int8_t)x[i] * w[i];
            return sum;
        });
    }
    void dot_pairs(int sums, int a, int b) {
        dot<float>(sums, a, b, [](float sum, const uint8_t* x, const uint8_t* w) {
            for (int i = 0; i < 2; i++) {
                uint16_t left, right;
                std::memcpy(&left, x + 2 * i, 2);
                std::memcpy(&right, w + 2 * i, 2);
                sum += widen(left) * widen(right);
            }
            return sum;
        });
    }
};

static thread_local SoftwareTiles tiles;

#define TILE_LOAD(tile, from, stride) tiles.load(tile, from, stride)
#define TILE_STORE(tile, to, stride) tiles.store(tile, to, stride)
#define TILE_ZERO(tile) std::memset(tiles.at[tile], 0, sizeof tiles.at[tile])
#define TILE_DOT_QUADS(sums, a, b) tiles.dot_quads(sums, a, b)
#define TILE_DOT_PAIRS(sums, a, b) tiles.dot_pairs(sums, a, b)

struct TileUse {
    explicit TileUse(const TileShapes& shapes) { tiles.shapes = shapes; }
};

#endif

// Rows of `words` words, up to 16 of each, as a tile without holes: where they lie where all are there, else in `own`.
struct TileSource {
    const Word* at;
    long stride;  // bytes

    TileSource(const Word* from, long from_stride, long rows, long words, Word (&own)[TILE_ROWS][16]) {
        if (rows >= TILE_ROWS && words >= 16) {
            at = from;
            stride = from_stride * 4;
            return;
        }
        std::memset(own, 0, sizeof own);
        for (long r = 0; r < std::min(rows, TILE_ROWS); r++)
            std::memcpy(own[r], from + r * from_stride, std::min(words, 16L) * 4);
        at = own[0];
        stride = 64;
    }
};

// The first four tiles: sums of two panels by each of two runs of tokens.
PARAGONE_INLINE void zero_sums() {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
}

template <class Sum> PARAGONE_INLINE void store_sums(Sum (&to)[4][TILE_ROWS][16]) {
    TILE_STORE(0, to[0], 64);
    TILE_STORE(1, to[1], 64);
    TILE_STORE(2, to[2], 64);
    TILE_STORE(3, to[3], 64);
}

// Rows [first, first + count) of the outputs, P panels of words in pairs, by M tokens, 32 of them at a time.
template <int P>
static void tiles_by_tokens(const Word* panels, long panel_stride, long words, const Word* x, long x_stride, long M,
                            const Out& to, long first, long count) {
    TileShapes shapes;
    for (int tile = 0; tile < 8; tile++) shapes.set(tile, TILE_ROWS, 64);
    TileUse use(shapes);
    alignas(64) Word own[4][TILE_ROWS][16];
    alignas(64) float sums[4][TILE_ROWS][16];
    for (long m = 0; m < M; m += 2 * TILE_ROWS) {
        long tokens = std::min(2 * TILE_ROWS, M - m);
        zero_sums();
        for (long j = 0; j < words; j += 16) {
            const Word *near = x + m * x_stride + j, *panel = panels + j * PANEL;
            TileSource a(near, x_stride, tokens, words - j, own[0]);
            TileSource b(panel, PANEL, words - j, 16, own[1]);
            TILE_LOAD(4, a.at, a.stride);
            TILE_LOAD(6, b.at, b.stride);
            TILE_DOT_PAIRS(0, 4, 6);
            if constexpr (P == 2) {
                TileSource other(panel + panel_stride, PANEL, words - j, 16, own[2]);
                TILE_LOAD(7, other.at, other.stride);
                TILE_DOT_PAIRS(1, 4, 7);
            }
            if (tokens <= TILE_ROWS) continue;
            TileSource far(near + TILE_ROWS * x_stride, x_stride, tokens - TILE_ROWS, words - j, own[3]);
            TILE_LOAD(5, far.at, far.stride);
            TILE_DOT_PAIRS(2, 5, 6);
            if constexpr (P == 2) TILE_DOT_PAIRS(3, 5, 7);
        }
        store_sums(sums);
        for (long i = 0; i < tokens; i++) {
            VF out[P];
            for (int p = 0; p < P; p++) out[p] = load(sums[i / TILE_ROWS * 2 + p][i % TILE_ROWS]);
            finish(to, m + i, first, count, out);
        }
    }
}

}  // namespace PARAGONE_LEVEL

#endif
