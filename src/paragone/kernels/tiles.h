// Tiles: eight registers of up to 16 rows of 64 bytes, and products of whole tiles (Intel AMX: Intel 64 and IA-32
// Architectures Software Developer's Manual, volume 1, chapter 18). PARAGONE_TILES is 1 where the compiler makes
// instructions of them; where it is 2 they are computed in software, slowly: so that what is built from tiles is
// tested on processors without them.
#pragma once

#include <algorithm>

#include "coming.h"
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

// Written out, for the compilers' own functions say nothing of the memory that they read and write: where they are
// told that it may be all, sums leave their registers.
#define TILE_LOAD(tile, from, stride) \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #tile \
                 : : "r"(from), "r"((long)(stride)), "m"(*(const uint8_t(*)[])(from)))
#define TILE_STORE(tile, to, stride) \
    asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"((long)(stride)) : "memory")
// To an array of rows, and to nothing else.
#define TILE_STORE_TO(tile, to) \
    asm volatile("tilestored %%tmm" #tile ", (%1,%2,1)" : "=m"(to) : "r"(&to), "r"((long)sizeof to[0]))
#define TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile :)
// sums += a . b: signed bytes of a by unsigned or signed ones of b, four in each lane; bfloat16 by bfloat16, two.
#define TILE_DOT_QUADS(sums, a, b) asm volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #sums :)
#define TILE_DOT_SIGNED(sums, a, b) asm volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sums :)
#define TILE_DOT_PAIRS(sums, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sums :)

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
    template <class Weight> void dot_quads(int sums, int a, int b) {
        dot<int32_t>(sums, a, b, [](int32_t sum, const uint8_t* x, const uint8_t* w) {
            for (int i = 0; i < 4; i++) sum += (int8_t)x[i] * (Weight)w[i];
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
#define TILE_STORE_TO(tile, to) tiles.store(tile, to, sizeof to[0])
#define TILE_DOT_QUADS(sums, a, b) tiles.dot_quads<uint8_t>(sums, a, b)
#define TILE_DOT_SIGNED(sums, a, b) tiles.dot_quads<int8_t>(sums, a, b)
#define TILE_DOT_PAIRS(sums, a, b) tiles.dot_pairs(sums, a, b)

struct TileUse {
    explicit TileUse(const TileShapes& shapes) { tiles.shapes = shapes; }
};

#endif

// All eight tiles of 16 rows of 64 bytes, as everything here takes them.
struct WholeTiles : TileUse {
    static constexpr TileShapes SHAPES = [] {
        TileShapes shapes;
        for (int tile = 0; tile < 8; tile++) shapes.set(tile, TILE_ROWS, 64);
        return shapes;
    }();
    WholeTiles() : TileUse(SHAPES) {}
};

// Tiles of rows and of one or two panels multiplied: codes, or pairs of bfloat16 numbers.
template <int P, bool CODES>
PARAGONE_INLINE void multiply_tiles(const void* rows, long stride, bool wide, const void* panel, long panel_stride) {
#define PARAGONE_DOT(sums, a, b) \
    if constexpr (CODES) TILE_DOT_QUADS(sums, a, b); \
    else TILE_DOT_PAIRS(sums, a, b)
    TILE_LOAD(4, rows, stride);
    TILE_LOAD(6, panel, 64);
    PARAGONE_DOT(0, 4, 6);
    if constexpr (P == 2) {
        TILE_LOAD(7, (const uint8_t*)panel + panel_stride, 64);
        PARAGONE_DOT(1, 4, 7);
    }
    if (!wide) return;
    TILE_LOAD(5, (const uint8_t*)rows + TILE_ROWS * stride, stride);
    PARAGONE_DOT(2, 5, 6);
    if constexpr (P == 2) PARAGONE_DOT(3, 5, 7);
#undef PARAGONE_DOT
}

// The first four tiles: sums of two runs of tokens with P panels each, in rows `stride` bytes apart.
PARAGONE_INLINE void zero_sums() {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
}

// Those of each token begin with what its 16 numbers are.
template <int P> PARAGONE_INLINE void begin_sums(const int32_t* tokens, bool wide) {
    TILE_LOAD(0, tokens, 64);
    if constexpr (P == 2) TILE_LOAD(1, tokens, 64);
    if (!wide) return;
    TILE_LOAD(2, tokens + TILE_ROWS * PANEL, 64);
    if constexpr (P == 2) TILE_LOAD(3, tokens + TILE_ROWS * PANEL, 64);
}

template <int P> PARAGONE_INLINE void load_sums(const void* from, long stride, bool wide) {
    const uint8_t *near = (const uint8_t*)from, *far = near + TILE_ROWS * stride;
    TILE_LOAD(0, near, stride);
    if constexpr (P == 2) TILE_LOAD(1, near + 64, stride);
    if (!wide) return;
    TILE_LOAD(2, far, stride);
    if constexpr (P == 2) TILE_LOAD(3, far + 64, stride);
}

template <int P> PARAGONE_INLINE void store_sums(void* to, long stride, bool wide) {
    uint8_t *near = (uint8_t*)to, *far = near + TILE_ROWS * stride;
    TILE_STORE(0, near, stride);
    if constexpr (P == 2) TILE_STORE(1, near + 64, stride);
    if (!wide) return;
    TILE_STORE(2, far, stride);
    if constexpr (P == 2) TILE_STORE(3, far + 64, stride);
}

// A run of tokens that is multiplied at once, of M from token `begin` on: as many as there are tiles for, or one tile of
// them. The last run may begin before that: tokens are then multiplied once more, where they alone do not fill a tile.
struct TileTokens {
    bool wide;
    long first, upto;

    TileTokens(long begin, long M) : wide(M - begin > TILE_ROWS && M >= 2 * TILE_ROWS) {
        long count = wide ? 2 * TILE_ROWS : TILE_ROWS;
        first = std::max(0L, std::min(begin, M - count));
        upto = std::min(M, first + count);
    }
};

// How M tokens are cut into tiles, which have as many rows each: the last may begin with tokens of the one before.
struct TokenTiles {
    long tiles, rows, M;

    explicit TokenTiles(long tokens)
        : tiles((tokens + TILE_ROWS - 1) / TILE_ROWS), rows((tokens + tiles - 1) / tiles), M(tokens) {}
    long first(long tile) const { return std::min(tile * rows, M - rows); }
};

// Rows of up to 16 words, filled up with zeros.
template <int ROWS>
static void fill_up(const Word* from, long stride, long rows, long words, Word (&to)[ROWS][16]) {
    std::memset(to, 0, sizeof to);
    for (long r = 0; r < std::min<long>(rows, ROWS); r++)
        std::memcpy(to[r], from + r * stride, std::min(words, 16L) * sizeof(Word));
}

// Rows [first, first + count) of the outputs, P panels of words in pairs, by M tokens, with WholeTiles. Whole tiles
// are summed up where the outputs are.
template <int P>
static void tiles_by_tokens(const Word* panels, long panel_stride, long words, const Word* x, long x_stride, long M,
                            const Out& to, long first, long count, Coming coming) {
    long whole = M < TILE_ROWS ? 0 : words / 16 * 16;
    for (long done = 0; done < M;) {
        TileTokens now(done, M);
        const Word* tokens = x + now.first * x_stride;
        float* y = to.y + now.first * to.stride + first;
        bool there = M >= TILE_ROWS && count == P * PANEL && !to.bias && !(to.add && now.first < done);
        if (there && to.add) load_sums<P>(y, to.stride * sizeof *y, now.wide);
        else zero_sums();
        for (long j = 0; j < whole; j += 16) {
            multiply_tiles<P, false>(tokens + j, x_stride * sizeof *x, now.wide, panels + j * PANEL,
                                     panel_stride * sizeof *panels);
            coming.fetch_some();
        }
        for (long j = whole; j < words; j += 16) {
            alignas(64) Word rows[2 * TILE_ROWS][16], filled[P][16][16];
            fill_up(tokens + j, x_stride, now.upto - now.first, words - j, rows);
            for (int p = 0; p < P; p++)
                fill_up(panels + p * panel_stride + j * PANEL, PANEL, words - j, 16, filled[p]);
            multiply_tiles<P, false>(rows, sizeof rows[0], now.wide, filled, sizeof filled[0]);
        }
        if (there) {
            store_sums<P>(y, to.stride * sizeof *y, now.wide);
        } else {
            alignas(64) float sums[2 * TILE_ROWS][P * PANEL];
            store_sums<P>(sums, sizeof sums[0], now.wide);
            for (long m = done; m < now.upto; m++) {
                VF out[P];
                for (int p = 0; p < P; p++) out[p] = load(sums[m - now.first] + p * PANEL);
                finish(to, m, first, count, out);
            }
        }
        done = now.upto;
    }
}

}  // namespace PARAGONE_LEVEL

#endif
