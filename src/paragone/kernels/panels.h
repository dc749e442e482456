// Products of many tokens with numbers in panels: sixteen rows side by side, a lane for each, word by word. Linear
// layers and the attention of prompts are made of them.
#pragma once

#include <algorithm>

#include "coming.h"
#include "finish.h"
#include "tiles.h"

namespace PARAGONE_LEVEL {

constexpr int TILE_PANELS = 2;  // that are made at once
constexpr int TOGETHER = W == 8 ? 1 : 2;  // panels and tokens of one tile: as many sums as fit into the registers
constexpr int TILE_TOKENS = W == 16 ? 8 : W == 8 ? 6 : 1;
constexpr long DEPTH = W == 16 ? 1024 : 256;  // words of a panel that stay in a near cache
constexpr long PANEL_ROWS = TILE_PANELS * PANEL;

PARAGONE_INLINE VI interleave(VI a, VI b, bool high) {
#if PARAGONE_LANES == 16
    return high ? __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                : __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif PARAGONE_LANES == 8
    return high ? __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
                : __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return high ? __builtin_shufflevector(a, b, 2, 6, 3, 7) : __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}

// Turns W registers of W words: log2 W rounds of perfect shuffles.
PARAGONE_INLINE void transpose(VI (&v)[W]) {
#pragma GCC unroll 4
    for (long round = 1; round < W; round *= 2) {
        VI mixed[W];
#pragma GCC unroll 8
        for (long i = 0; i < W / 2; i++) {
            mixed[2 * i] = interleave(v[i], v[i + W / 2], false);
            mixed[2 * i + 1] = interleave(v[i], v[i + W / 2], true);
        }
#pragma GCC unroll 16
        for (long i = 0; i < W; i++) v[i] = mixed[i];
    }
}

// sum + the products of words, in each lane.
PARAGONE_INLINE VF multiply_words(VF sum, VI w, VI x) {
#if defined(__AVX512BF16__)
    return dot_pairs(sum, w, x);
#else
    return multiply_add((VF)w, (VF)x, sum);
#endif
}

// P panels, `stride` words apart, by M tokens: outputs [first, first + count) of tokens from m on.
template <int P, int M>
static void tile(const Word* panel, long stride, long words, const Word* x, long x_stride, const Out& to, long m,
                 long first, long count, Coming& coming) {
    VF sums[M][P * V] = {};
    for (long j = 0; j < words; j++) {
        coming.fetch_some();
        VI w[P * V];
#pragma GCC unroll 8
        for (int v = 0; v < P * V; v++) w[v] = load_words(panel + v / V * stride + j * PANEL + v % V * W);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) {
            VI both = splat_word(x + i * x_stride + j);
#pragma GCC unroll 8
            for (int v = 0; v < P * V; v++) {
                sums[i][v] = multiply_words(sums[i][v], w[v], both);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) finish(to, m + i, first, count, sums[i]);
}

// Rows [first, first + count) of the outputs, P panels of them, by M tokens, while [next, end) comes nearer. `alike`:
// summed as single tokens are.
template <int P>
static void panels_by_tokens(const Word* panels, long stride, long words, const Word* x, long x_stride, long M,
                             const Out& to, long first, long count, bool alike = false,
                             const uint8_t* next = nullptr, const uint8_t* end = nullptr) {
#if PARAGONE_TILES
    if (!alike) {
        long steps = (M + 2 * TILE_ROWS - 1) / (2 * TILE_ROWS) * (words + 15) / 16;
        Coming coming{next, end, (end - next) / LINE / std::max(1L, steps) + 1};
        return tiles_by_tokens<P>(panels, stride, words, x, x_stride, M, to, first, count, coming);
    }
#endif
    constexpr int WIDE = std::min(P, TOGETHER);
    long steps = P / WIDE * (M / TILE_TOKENS + M % TILE_TOKENS / 4 + M % 4) * words;
    Coming coming{next, end, (end - next) / LINE / std::max(1L, steps) + 1};
    auto pass = [&](const Word* panel, long from, long here) {
        auto some = [&]<int COUNT>(long m) {
            tile<WIDE, COUNT>(panel, stride, words, x + m * x_stride, x_stride, to, m, from, here, coming);
        };
        long m = 0;
        for (; m + TILE_TOKENS <= M; m += TILE_TOKENS) some.template operator()<TILE_TOKENS>(m);
        if constexpr (TILE_TOKENS > 4)
            if (m + 4 <= M) {  // fewer than twice that are left
                some.template operator()<4>(m);
                m += 4;
            }
        for (; m < M; m++) some.template operator()<1>(m);
    };
    for (int p = 0; p < P; p += WIDE)
        pass(panels + p * stride, first + p * PANEL, std::min(count - p * PANEL, WIDE * PANEL));
}

}  // namespace PARAGONE_LEVEL
