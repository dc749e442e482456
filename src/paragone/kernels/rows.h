// Products of a few tokens with bfloat16 rows as they lie. They are bound by reading the weight, and each byte is read
// once. With wide registers a token alone takes the rows one after the other, in the order of their lines, and the
// processor fetches ahead by itself as fast as memory gives; with narrow ones it would wait for its own sums. Several
// tokens share a block of rows, or loading them anew for every row would be the limit; the next block but one is
// fetched meanwhile, line by line as it lies: memory gives neighbours sooner than one line of every row.
#pragma once

#include "finish.h"

namespace PARAGONE_LEVEL {

constexpr int ROWS = W >= 8 ? 4 : 2;                    // of a block
constexpr int SHARERS = PAIRS ? 6 : W == 8 ? 3 : 4;     // tokens that share one reading of a block from the nearest cache

// The sums of R vectors, added in the same order whatever R is.
template <int R> PARAGONE_INLINE void sum_each(const VF (&v)[R], float (&out)[R]) {
    if constexpr (R % 4 == 0)
#pragma GCC unroll 2
        for (int r = 0; r < R; r += 4) sum4(v[r], v[r + 1], v[r + 2], v[r + 3], out + r);
    else
        for (int r = 0; r < R; r++) {
            float four[4];
            sum4(v[r], VF{}, VF{}, VF{}, four);
            out[r] = four[0];
        }
}

// One step of R rows by M tokens.
template <int R, int M, class Weights, class Tokens>
PARAGONE_INLINE void multiply_step(VF (&sums)[M][R], Weights weights, Tokens tokens) {
#if defined(__AVX512BF16__)
    VI w[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) w[r] = load_words(weights(r));
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
        VI x = load_words(tokens(m));
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sums[m][r] = dot_pairs(sums[m][r], w[r], x);
    }
#else
    VF x[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) x[m] = load((const float*)tokens(m));
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        VF w = load(weights(r));
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) sums[m][r] += w * x[m];
    }
#endif
}

// R rows of D inputs from w on by one token, row by row.
template <int R> PARAGONE_INLINE void row_by_row(const uint16_t* w, long D, const Word* x, float (&y)[R]) {
    VF sums[R];
    for (int r = 0; r < R; r++, w += D) {
        VF sum[1][1] = {};
        long d = 0;
        for (; d + STEP_NUMBERS <= D; d += STEP_NUMBERS)
            multiply_step<1, 1>(sum, [&](int) { return w + d; }, [&](int) { return x + d / NUMBERS; });
        if (d < D) {
            uint16_t tail[STEP_NUMBERS] = {};
            Word last[W] = {};
            std::memcpy(tail, w + d, (D - d) * 2);
            std::memcpy(last, x + d / NUMBERS, (words_of(D) - d / NUMBERS) * sizeof(Word));
            multiply_step<1, 1>(sum, [&](int) { return tail; }, [&](int) { return last; });
        }
        sums[r] = sum[0][0];
    }
    sum_each(sums, y);
}

// R rows of D inputs from w on by M tokens of `words` words each from x on.
template <int R, int M>
PARAGONE_INLINE void block(const uint16_t* w, long D, const Word* x, long words, float (&y)[M][R]) {
    VF sums[M][R] = {};
    long d = 0, word = 0;
    for (; d + STEP_NUMBERS <= D; d += STEP_NUMBERS, word += W) {
        for (int r = 0; r < R; r++) __builtin_prefetch(w + (2 * D + d) * R + r * STEP_NUMBERS, 0, 2);
        multiply_step<R, M>(sums, [&](int r) { return w + r * D + d; }, [&](int m) { return x + m * words + word; });
    }
    if (d < D) {
        uint16_t tail[R][STEP_NUMBERS] = {};
        Word last[M][W] = {};
        for (int r = 0; r < R; r++) std::memcpy(tail[r], w + r * D + d, (D - d) * 2);
        for (int m = 0; m < M; m++) std::memcpy(last[m], x + m * words + word, (words - word) * sizeof(Word));
        multiply_step<R, M>(sums, [&](int r) { return tail[r]; }, [&](int m) { return last[m]; });
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) sum_each(sums[m], y[m]);
}

template <int R>
static void rows_by_tokens(const uint16_t* w, long row, long D, const Word* x, long M, const Out& to) {
    long words = words_of(D);
    auto some = [&]<int COUNT>(long m) {
        float out[COUNT][R];
        if constexpr (COUNT == 1 && W == 16) row_by_row<R>(w + row * D, D, x + m * words, out[0]);
        else block<R, COUNT>(w + row * D, D, x + m * words, words, out);
        for (int i = 0; i < COUNT; i++) finish(to, m + i, row, R, out[i]);
    };
    long m = 0;
    for (; m + SHARERS <= M; m += SHARERS) some.template operator()<SHARERS>(m);
    for (; m + 2 <= M; m += 2) some.template operator()<2>(m);
    if (m < M) some.template operator()<1>(m);
}

// Rows [first, last).
static void rows_linear(const uint16_t* w, long first, long last, long D, const Word* x, long M, const Out& to) {
    long row = first;
    for (; row + ROWS <= last; row += ROWS) rows_by_tokens<ROWS>(w, row, D, x, M, to);
    for (; row < last; row++) rows_by_tokens<1>(w, row, D, x, M, to);
}

}  // namespace PARAGONE_LEVEL
