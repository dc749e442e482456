// Products with weights in bfloat16 that lie in panels in twelve bits a number (compress.h). By few tokens they are
// brought back in registers as they come from memory; by many, once into panels of words that stay in a near cache.
// Sums are made in the same order for any number of tokens.
#pragma once

#include <array>
#include <optional>
#include <utility>

#include "bytes.h"
#include "compress.h"
#include "panels.h"

namespace PARAGONE_LEVEL {

constexpr int TOGETHER_FEW = W == 16 ? 16 : W == 8 ? 6 : 4;  // tokens: so many sums stay in registers
constexpr int FEW = W == 8 ? 2 * TOGETHER_FEW : TOGETHER_FEW;  // in so many panels need not be brought back first
constexpr long PAIRS_OF_BLOCK = compressed::INPUTS / 2, WORDS_OF_BLOCK = compressed::INPUTS / NUMBERS;
constexpr long FURTHER = 16 << 10;  // bytes: what comes into the second cache while a few tokens pass
constexpr long DEEP = DEPTH / WORDS_OF_BLOCK;  // blocks that are summed up at a time

// Where a product is in a panel: its blocks, what their codes stand for, and the next number that is in the list.
struct Course {
    const uint8_t *block, *upper;
    const Outlier* next;

    PARAGONE_MEMBER Course(const Compressed& w, long p, long from) {
        upper = w.panels + p * compressed::panel_bytes(w.D);
        next = w.outliers + w.lists[p];
        while (next->block < from) next++;
        block = upper + compressed::LINE + from * compressed::BLOCK_BYTES;
    }
};

// Pairs of neighbouring inputs of rows [v * W, v * W + W) of a block, a lane for each row.
PARAGONE_INLINE void expand(const Course& at, int v, VI (&pairs)[PAIRS_OF_BLOCK]) {
    const uint8_t* from = at.block + v * W * 4;
    VI codes = load_words(from);
    for (int half = 0; half < 2; half++) {
        VI higher = look_up(at.upper, (half ? (VI)((VU)codes >> 4) : codes) & 0x0f0f0f0f);
        VI lower = load_words(from + (1 + half) * LINE);
        pairs[2 * half] = interleave_bytes(lower, higher, false);
        pairs[2 * half + 1] = interleave_bytes(lower, higher, true);
    }
}

// The same where some of its numbers are in the list.
static __attribute__((noinline)) void expand_listed(const Course& at, int v, VI (&pairs)[PAIRS_OF_BLOCK]) {
    expand(at, v, pairs);
    for (const Outlier* one = at.next; one->block == at.next->block; one++) {
        long lane = one->lane - v * W;
        if (lane < 0 || lane >= W) continue;
        uint16_t halves[2 * W];
        VI& words = pairs[one->input / 2];
        std::memcpy(halves, &words, sizeof words);
        halves[2 * lane + one->input % 2] = one->bits;
        std::memcpy(&words, halves, sizeof words);
    }
}

// The words of R registers of rows of a block, from register v on; a block after the other. Words are what products
// take: pairs, or floats one after the other.
template <int R> PARAGONE_INLINE void take_block(Course& at, long b, int v, VI (&words)[R][WORDS_OF_BLOCK]) {
    bool listed = at.next->block == b;
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        VI pairs[PAIRS_OF_BLOCK];
        if (__builtin_expect(listed, false)) {
            VI own[PAIRS_OF_BLOCK];  // so that those of most blocks need not be in memory
            expand_listed(at, v + r, own);
            for (long i = 0; i < PAIRS_OF_BLOCK; i++) pairs[i] = own[i];
        } else {
            expand(at, v + r, pairs);
        }
#pragma GCC unroll 4
        for (long i = 0; i < PAIRS_OF_BLOCK; i++)
            if constexpr (PAIRS) {
                words[r][i] = pairs[i];
            } else {
                words[r][2 * i] = (VI)((VU)pairs[i] << 16);
                words[r][2 * i + 1] = (VI)((VU)pairs[i] & 0xffff0000u);
            }
    }
    if (__builtin_expect(listed, false))
        while (at.next->block == b) at.next++;
    at.block += compressed::BLOCK_BYTES;
}

// Up to sixteen tokens side by side, word by word: what a tile of products takes then lies together.
static void panel_of_tokens(const Word* x, long count, long words, Word* panel) {
    for (long r = 0; r < count; r += W)
        for (long j = 0; j < words; j += W) {
            VI v[W];
            long here = std::min(W, words - j);
#pragma GCC unroll 16
            for (long i = 0; i < W; i++) {
                const Word* from = x + std::min(r + i, count - 1) * words + j;  // what is there once more is not used
                if (here == W) {
                    v[i] = load_words(from);
                } else {
                    Word tail[W] = {};
                    std::memcpy(tail, from, here * sizeof(Word));
                    v[i] = load_words(tail);
                }
            }
            transpose(v);
            for (long i = 0; i < here; i++) std::memcpy(panel + (j + i) * PANEL + r, &v[i], sizeof v[i]);
        }
}

// P panels, of each R registers of rows from register v on, by M tokens, blocks [from, from + deep). Several tokens lie
// side by side.
template <int P, int R, int M>
static void compressed_tile(const Compressed& weight, long p, int v, long from, long deep, const Word* x, long m,
                            const Out& to) {
    constexpr long STRIDE = M == 1 ? 1 : PANEL;  // of words
    auto panels = [&]<size_t... I>(std::index_sequence<I...>) {
        return std::array<Course, P>{Course(weight, p + (long)I, from)...};
    }(std::make_index_sequence<P>());
    VF sums[M][P * R] = {};
    x += from * WORDS_OF_BLOCK * STRIDE + m;
    for (long b = from; b < from + deep; b++, x += WORDS_OF_BLOCK * STRIDE) {
        VI words[P][R][WORDS_OF_BLOCK];
#pragma GCC unroll 2
        for (int q = 0; q < P; q++) {
            for (long at = 0; at < compressed::BLOCK_BYTES; at += LINE)
                __builtin_prefetch(panels[q].block + FURTHER + at, 0, 2);
            take_block(panels[q], b, v, words[q]);
        }
#pragma GCC unroll 8
        for (long j = 0; j < WORDS_OF_BLOCK; j++)
#pragma GCC unroll 16
            for (int i = 0; i < M; i++) {
                VI all = splat_word(x + j * STRIDE + i);
#pragma GCC unroll 4
                for (int r = 0; r < P * R; r++) sums[i][r] = multiply_words(sums[i][r], words[r / R][r % R][j], all);
            }
    }
    long first = p * PANEL + v * W;
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) finish(to, m + i, first, std::min(P * R * W, weight.rows - first), sums[i]);
}

// All of the panels by tokens [m, m + tokens), MOST at most.
template <int P, int MOST>
static void compressed_tiles(const Compressed& weight, long p, long from, long deep, const Word* x, long m, long tokens,
                             const Out& to) {
    if constexpr (MOST > 1)
        if (tokens < MOST) return compressed_tiles<P, MOST - 1>(weight, p, from, deep, x, m, tokens, to);
    constexpr int R = V == 2 ? 2 : 1;  // sums of one register alone would wait for each other
    static_assert(R == V || P == 1);
    for (int v = 0; v < V; v += R) compressed_tile<P, R, MOST>(weight, p, v, from, deep, x, m, to);
}

// Blocks [from, from + deep) of a panel as words, sixteen rows side by side.
static void panel_of_blocks(const Compressed& weight, long p, long from, long deep, Word* panel) {
    Course at(weight, p, from);
    for (long b = from; b < from + deep; b++, panel += WORDS_OF_BLOCK * PANEL) {
        VI taken[V][WORDS_OF_BLOCK];
        take_block(at, b, 0, taken);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
#pragma GCC unroll 8
            for (long j = 0; j < WORDS_OF_BLOCK; j++) std::memcpy(panel + j * PANEL + v * W, &taken[v][j], sizeof(VI));
    }
}

// Panels [first, last) of the weight by M tokens, in words of D to the next 8. `alike`: sums are made as for one
// token, for which matrix units are not used. room: compressed_room(D) words.
static void compressed_linear(const Compressed& weight, long first, long last, const Word* x, long M, bool alike,
                              const Out& to, Word* room) {
    long blocks = compressed::blocks_of(weight.D), stride = blocks * WORDS_OF_BLOCK;
    long bytes = compressed::panel_bytes(weight.D);
    const Word* few = x;
#if PARAGONE_TILES
    std::optional<WholeTiles> use;
    if (M > FEW && !alike) use.emplace();
#endif
    long shares = (M + TOGETHER_FEW - 1) / TOGETHER_FEW, share = (M + shares - 1) / shares;
    if (M > 1 && M <= FEW) {
        Word* side_by_side = room + TILE_PANELS * PANEL * DEPTH;
        panel_of_tokens(x, M, stride, side_by_side);
        few = side_by_side;
    }
    auto pass = [&]<int P, int MOST>(long p) {
        for (long from = 0; from < blocks; from += DEEP) {
            long deep = std::min(DEEP, blocks - from), words = deep * WORDS_OF_BLOCK, row = p * PANEL;
            Out mine = to;
            if (from) {
                mine.add = true;
                mine.bias = nullptr;
            }
            if (M <= FEW) {
                for (long m = 0; m < M; m += share)
                    compressed_tiles<P, MOST>(weight, p, from, deep, few, m, std::min(share, M - m), mine);
                continue;
            }
            for (int q = 0; q < P; q++) panel_of_blocks(weight, p + q, from, deep, room + q * words * PANEL);
            // What is read next begins where this ends, but for the header of a panel.
            const uint8_t* next = weight.panels + (p + P - 1) * bytes + (from + deep) * compressed::BLOCK_BYTES;
            panels_by_tokens<P>(room, words * PANEL, words, x + from * WORDS_OF_BLOCK, stride, M, mine, row,
                                std::min(P * PANEL, weight.rows - row), alike, next,
                                std::min(next + P * deep * compressed::BLOCK_BYTES, weight.panels + last * bytes));
        }
    };
    // Panels, whose sums do not wait for each other; and of how many tokens beside their words.
    constexpr int WIDE = W == 16 ? 2 : 1, BESIDE = W < 16 ? TOGETHER_FEW : PAIRS ? 8 : 4;
    long p = first;
    if (M <= BESIDE || M > FEW)
        for (; p + WIDE <= last; p += WIDE) pass.template operator()<WIDE, BESIDE>(p);
    for (; p < last; p++) pass.template operator()<1, TOGETHER_FEW>(p);
}

static long compressed_room(long D) {
    return TILE_PANELS * PANEL * DEPTH + PANEL * compressed::blocks_of(D) * WORDS_OF_BLOCK;
}

}  // namespace PARAGONE_LEVEL
