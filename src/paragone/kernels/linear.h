// Products of tokens with a weight matrix, made for few. They are bound by reading the weight: each byte is read once,
// in order, a block of rows at a time, and the next block is fetched while this one is multiplied.
#pragma once

#include "table.h"
#include "vec.h"

namespace PARAGONE_LEVEL {

constexpr int ROWS = W == 16 ? 8 : 4;  // rows of a block: as many sums as fit into the registers
constexpr long LINE = 64;

// Tokens that share one reading of a block from the nearest cache.
template <Format F> constexpr int TOKENS = PAIRS && F == Format::bf16 ? 6 : 4;

// The sums of R vectors, added in the same order whatever R is.
template <int R> PARAGONE_INLINE void sum_each(const VF (&v)[R], float (&out)[R]) {
    if constexpr (R % 4 == 0)
        for (int r = 0; r < R; r += 4) sum4(v[r], v[r + 1], v[r + 2], v[r + 3], out + r);
    else
        for (int r = 0; r < R; r++) {
            float four[4];
            sum4(v[r], VF{}, VF{}, VF{}, four);
            out[r] = four[0];
        }
}

template <Format F> PARAGONE_INLINE long row_bytes(long D) {
    return F == Format::bf16 ? 2 * D : F == Format::int8 ? D : D / 2;
}

// R rows by M tokens, for the formats whose inputs lie in order.
template <class T, int R, int M>
PARAGONE_INLINE void block(const T* w, long D, long next, const float* x, float (&y)[M][R]) {
    VF sums[M][R] = {};
    long d = 0;
    for (; d + W <= D; d += W) {
        if (d * (long)sizeof(T) % LINE == 0)
            for (int r = 0; r < R; r++) __builtin_prefetch(w + r * D + d + next);
        VF xs[M];
        for (int m = 0; m < M; m++) xs[m] = load(x + m * D + d);
        for (int r = 0; r < R; r++) {
            VF ws = load(w + r * D + d);
            for (int m = 0; m < M; m++) sums[m][r] += ws * xs[m];
        }
    }
    for (int m = 0; m < M; m++) {
        sum_each(sums[m], y[m]);
        for (int r = 0; r < R; r++)
            for (long i = d; i < D; i++) {
                float weight;
                if constexpr (sizeof(T) == 2) weight = widen(w[r * D + i]);
                else weight = w[r * D + i];
                y[m][r] += weight * x[m * D + i];
            }
    }
}

// The same for bfloat16 on both sides, where one instruction multiplies pairs of them.
template <int R, int M>
PARAGONE_INLINE void block_pairs(const uint16_t* w, long D, long next, const uint16_t* x, float (&y)[M][R]) {
#if defined(__AVX512BF16__)
    VF sums[M][R] = {};
    for (long d = 0; d < D; d += 2 * W) {
        // A mask for the last, shorter piece only: loads without one are what the loop is made of.
        __mmask32 mask = d + 2 * W <= D ? ~0u : ~0u >> (d + 2 * W - D);
        __m512bh ws[R];
        for (int r = 0; r < R; r++) {
            ws[r] = (__m512bh)_mm512_maskz_loadu_epi16(mask, w + r * D + d);
            __builtin_prefetch(w + r * D + d + next);
        }
        for (int m = 0; m < M; m++) {
            __m512bh xs = (__m512bh)_mm512_maskz_loadu_epi16(mask, x + m * D + d);
            for (int r = 0; r < R; r++) sums[m][r] = (VF)_mm512_dpbf16_ps((__m512)sums[m][r], ws[r], xs);
        }
    }
    for (int m = 0; m < M; m++) sum_each(sums[m], y[m]);
#endif
}

// The same for int4: sum over groups of scale * (codes . x) + (zero - 8 scale) * (sum of x).
template <int R, int M>
PARAGONE_INLINE void block4(const uint8_t* w, const uint16_t* scales, long D, long next, const float* x,
                            const float* sums, float (&y)[M][R]) {
    long G = D / GROUP;
    VF totals[M][R] = {};
    float zeros[M][R] = {};
    for (long g = 0; g < G; g++) {
        for (int r = 0; r < R; r++) {
            const uint8_t* p = w + r * (D / 2) + g * (GROUP / 2);
            if (g % 4 == 0) __builtin_prefetch(p + next);
            float scale = widen(scales[(r * G + g) * 2]), zero = widen(scales[(r * G + g) * 2 + 1]);
            VF parts[M] = {};
            for (long i = 0; i < GROUP / 2; i += W) {
                VI wide = load_bytes(p + i);
                VF low = __builtin_convertvector(wide & 15, VF);
                VF high = __builtin_convertvector(wide >> 4, VF);
                for (int m = 0; m < M; m++) {
                    const float* xs = x + m * D + g * GROUP + i;
                    parts[m] += low * load(xs) + high * load(xs + GROUP / 2);
                }
            }
            for (int m = 0; m < M; m++) {
                totals[m][r] += parts[m] * scale;
                zeros[m][r] += (zero - 8 * scale) * sums[m * G + g];
            }
        }
    }
    for (int m = 0; m < M; m++) {
        sum_each(totals[m], y[m]);
        for (int r = 0; r < R; r++) y[m][r] += zeros[m][r];
    }
}

template <Format F, int R, int M>
PARAGONE_INLINE void some(Rows w, long row, long D, Inputs x, long m0, float* y, long stride) {
    float out[M][R];
    const uint8_t* codes = w.codes + row * row_bytes<F>(D);
    if constexpr (F == Format::bf16 && PAIRS)
        block_pairs<R, M>((const uint16_t*)codes, D, R * D, x.narrow + m0 * D, out);
    else if constexpr (F == Format::bf16)
        block<uint16_t, R, M>((const uint16_t*)codes, D, R * D, x.wide + m0 * D, out);
    else if constexpr (F == Format::int8)
        block<int8_t, R, M>((const int8_t*)codes, D, R * D, x.wide + m0 * D, out);
    else
        block4<R, M>(codes, w.scales + row * (D / GROUP) * 2, D, R * row_bytes<F>(D), x.wide + m0 * D,
                     x.sums + m0 * (D / GROUP), out);
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) {
            float scale = F == Format::int8 ? widen(w.scales[row + r]) : 1.0f;
            y[(m0 + m) * stride + row + r] = out[m][r] * scale;
        }
}

template <Format F, int R>
PARAGONE_INLINE void tokens(Rows w, long row, long D, Inputs x, float* y, long M, long stride) {
    long m = 0;
    for (; m + TOKENS<F> <= M; m += TOKENS<F>) some<F, R, TOKENS<F>>(w, row, D, x, m, y, stride);
    if (TOKENS<F> > 4 && m + 4 <= M) {
        some<F, R, 4>(w, row, D, x, m, y, stride);
        m += 4;
    }
    if (m + 2 <= M) {
        some<F, R, 2>(w, row, D, x, m, y, stride);
        m += 2;
    }
    if (m < M) some<F, R, 1>(w, row, D, x, m, y, stride);
}

template <Format F> static void rows_of(Rows w, long rows, long D, Inputs x, float* y, long M, long stride) {
    constexpr int FEW = ROWS / 2;  // with several tokens, fewer rows, or the sums leave the registers
    long row = 0;
    if (M == 1)
        for (; row + ROWS <= rows; row += ROWS) some<F, ROWS, 1>(w, row, D, x, 0, y, stride);
    else
        for (; row + FEW <= rows; row += FEW) tokens<F, FEW>(w, row, D, x, y, M, stride);
    for (; row < rows; row++) tokens<F, 1>(w, row, D, x, y, M, stride);
}

static void linear(Format format, Rows w, long rows, long D, Inputs x, float* y, long M, long stride) {
    if (format == Format::bf16) rows_of<Format::bf16>(w, rows, D, x, y, M, stride);
    else if (format == Format::int8) rows_of<Format::int8>(w, rows, D, x, y, M, stride);
    else rows_of<Format::int4>(w, rows, D, x, y, M, stride);
}

// int4 rows as bfloat16.
static void dequantize(Rows w, long rows, long D, uint16_t* to) {
    for (long g = 0; g < rows * D / GROUP; g++) {
        VF scale = splat(widen(w.scales[2 * g])), zero = splat(widen(w.scales[2 * g + 1])) - 8 * scale;
        const uint8_t* codes = w.codes + g * GROUP / 2;
        uint16_t* out = to + g * GROUP;
        for (long i = 0; i < GROUP / 2; i += W) {
            VI wide = load_bytes(codes + i);
            store(out + i, __builtin_convertvector(wide & 15, VF) * scale + zero);
            store(out + i + GROUP / 2, __builtin_convertvector(wide >> 4, VF) * scale + zero);
        }
    }
}

}  // namespace PARAGONE_LEVEL
