// Weights in four, five, six or eight bits, laid out for instructions that multiply four bytes in each lane, and what
// their products with activations in eight bits are made of.
//
// Sixteen rows are a panel; a lane is a row. A panel is a run of blocks of 64 inputs: codes, then scales, then, in
// asymmetric formats, minima: weight = scale * (code - CENTER) + minimum. Codes are unsigned; or, in four bits, they are
// numbers of sixteen levels, which take the place of code - CENTER. The four inputs of a lane are neighbours. In four
// bits, a half of a block (32 inputs) is four registers whose low halves of bytes hold the first sixteen inputs and
// whose high halves the others. Five and six bits begin so, and their upper bits follow in lines of their own: one has
// them for 32 or for 16 inputs, those of the first four lowest in each byte. Scales and minima are float16, in units
// that the matrix names, one for every 32 inputs, or, where `fine`, for every 16. So every sum of products of one scale
// is made of integers alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "bytes.h"
#include "coming.h"
#include "functions.h"
#include "table.h"

namespace PARAGONE_LEVEL {

constexpr long BLOCK = 64;    // inputs

// Bits of a code as it is stored, and of what it stands for. LEVELS takes the place of bits where those are two things.
constexpr int LEVELS = 0;
constexpr int stored(int bits) { return bits == LEVELS ? 4 : bits; }
constexpr int meant(int bits) { return bits == LEVELS ? 8 : bits; }

PARAGONE_INLINE constexpr long block_bytes(int bits, bool has_minimum, bool fine) {
    return BLOCK * PANEL * stored(bits) / 8 + (fine ? 4 : 2) * (has_minimum ? 2 : 1) * PANEL * 2;
}

// What a block has for each half, or each quarter.
typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourWords __attribute__((vector_size(16)));

// The largest of 64 inputs' halves, each twice.
PARAGONE_INLINE Four tops_of_halves(const float* from) {
    // Sizes compare as whole numbers do, and what is not a number is the largest.
    float tops[2];
    for (int half = 0; half < 2; half++) {
        VI most = {};
        for (long i = 0; i < 32; i += W) most = larger(most, (VI)load(from + 32 * half + i) & 0x7fffffff);
        tops[half] = as_float(largest_of(most));
    }
    return Four{tops[0], tops[0], tops[1], tops[1]};
}

// 64 inputs, the largest of whose halves are `top`.
PARAGONE_INLINE void quantize_block(const float* from, Four top, Quantised* to) {
    constexpr int REGISTERS = 32 / W;  // of a half of a block, whose quarters are what sums are made of
    Four scale = top / 127.0f, inverse = 127.0f / top;
    // Below, 127 / top would be infinite; what is no number is neither below nor above.
    inverse = (Four)((FourWords)inverse & ~(FourWords)(top <= 0x1p-120f));
    VF sums[4] = {};
    for (int half = 0; half < 2; half++) {
        VI codes[REGISTERS];
#pragma GCC unroll 8
        for (int i = 0; i < REGISTERS; i++) {
            VF shifted = multiply_add(load(from + 32 * half + i * W), inverse[2 * half], splat(WHOLE));
            codes[i] = (VI)shifted - WHOLE_BITS;
            sums[2 * half + i / (REGISTERS / 2)] += shifted - WHOLE;
        }
        store_bytes(to->codes + 32 * half, codes);
    }
    Four quarters;
    sum4(sums[0], sums[1], sums[2], sums[3], (float*)&quarters);
    Four totals = quarters + Four{0.0f, quarters[0], 0.0f, quarters[2]}, sizes = totals < 0 ? -totals : totals;
    FourWords numbers = (FourWords)(sizes <= 32 * 128.0f);  // they may be none
    FourWords whole = __builtin_convertvector((Four)((FourWords)totals & numbers), FourWords);
    FourWords start8 = whole * -8, start128 = whole * -128;
    totals *= scale;
    to->scales[0] = scale[0];
    to->scales[1] = scale[2];
    std::memcpy(to->totals, &totals, sizeof totals);
    std::memcpy(to->start8, &start8, sizeof start8);
    std::memcpy(to->start128, &start128, sizeof start128);
}

// One token's activations in eight bits. The largest of eight blocks are found before their codes are made, or each
// would wait for its own.
static void quantize_inputs(const float* x, long D, Quantised* to) {
    constexpr long TOGETHER = 8;  // blocks
    Four tops[TOGETHER];
    while (D >= BLOCK) {
        long count = std::min(TOGETHER, D / BLOCK);
        for (long b = 0; b < count; b++) tops[b] = tops_of_halves(x + b * BLOCK);
        for (long b = 0; b < count; b++) quantize_block(x + b * BLOCK, tops[b], to + b);
        x += count * BLOCK;
        D -= count * BLOCK;
        to += count;
    }
    if (D == 0) return;
    float rest[BLOCK] = {};
    std::memcpy(rest, x, D * sizeof *x);
    quantize_block(rest, tops_of_halves(rest), to);
}

// Moved up, or down where `by` is below zero.
PARAGONE_INLINE VI moved(VI bits, int by) { return by < 0 ? (VI)((VU)bits >> -by) : bits << by; }

// What a panel has of a quarter of a block, which is at most what one scale is for: register v of each.
template <int BITS, bool MINIMUM, bool FINE> struct PanelQuarter {
    static constexpr long SCALES = FINE ? 2 : 1;  // of a half
    static constexpr int STORED = stored(BITS), UPPER = STORED < 8 ? STORED - 4 : 0;
    static constexpr int MASK = 0x10101010 * ((1 << UPPER) - 1);
    const uint8_t* block;
    int half, quarter;

    // Of every row four inputs, from 4 * i on.
    PARAGONE_MEMBER VI code(const Packed& weight, int i, int v) const {
        const uint8_t* lanes = block + v * W * 4;
        if constexpr (STORED == 8) return load_words(lanes + (half * 8 + quarter * 4 + i) * 64);
        VI both = load_words(lanes + (half * 4 + i) * 64);
        VI out = (quarter ? (VI)((VU)both >> 4) : both) & 0x0f0f0f0f;
        if constexpr (UPPER) {
            long line = half * UPPER + quarter * (UPPER - 1);
            VI upper = load_words(lanes + BLOCK * PANEL / 2 + line * 64);
            out |= moved(upper, 4 - (UPPER == 1 ? 4 * quarter + i : 2 * i)) & MASK;
        }
        if constexpr (BITS == LEVELS) out = look_up(weight.levels, out);
        return out;
    }
    PARAGONE_MEMBER VF scale(int v) const { return half_at(half * SCALES + (FINE ? quarter : 0), v); }
    PARAGONE_MEMBER VF minimum(int v) const { return half_at((half + 2) * SCALES + (FINE ? quarter : 0), v); }

  private:
    PARAGONE_MEMBER VF half_at(long line, int v) const {
        return load_half((const uint16_t*)(block + BLOCK * PANEL * STORED / 8) + line * PANEL + v * W);
    }
};

// The same of P panels, `stride` bytes apart, in registers. Scales for a half come with its end.
template <int BITS, bool MINIMUM, bool FINE, int P> struct Quarter {
    VI codes[4][P * V];
    VF scales[P * V], minima[P * V];

    PARAGONE_MEMBER void fetch(const Packed& weight, const uint8_t* panel, long stride, int half, int quarter) {
#pragma GCC unroll 8
        for (int q = 0; q < P * V; q++) {
            PanelQuarter<BITS, MINIMUM, FINE> its{panel + q / V * stride, half, quarter};
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) codes[i][q] = its.code(weight, i, q % V);
            if (!FINE && quarter == 0) continue;
            scales[q] = its.scale(q % V);
            if constexpr (MINIMUM) minima[q] = its.minimum(q % V);
        }
    }
};

// A token's side of one scale of a block, which is for a half of it, or for a quarter where `FINE`.
template <int BITS, bool MINIMUM, bool FINE> struct Share {
    int32_t start = 0;  // of the sum of products: codes are taken less their center
    float scale, total;

    PARAGONE_MEMBER Share(const Quantised& x, int part) {
        constexpr bool EIGHT = meant(BITS) == 8;
        constexpr int TIMES = EIGHT ? 1 : 1 << (BITS - 4);  // the center of four bits
        const int32_t* starts = EIGHT ? x.start128 : x.start8;
        int half = FINE ? part / 2 : part, whole = 2 * half + 1;
        scale = x.scales[half];
        total = FINE ? part % 2 ? x.totals[whole] - x.totals[whole - 1] : x.totals[whole - 1] : x.totals[whole];
        if constexpr (EIGHT || !MINIMUM)
            start = TIMES * (FINE ? part % 2 ? starts[whole] - starts[whole - 1] : starts[whole - 1] : starts[whole]);
    }
};

}  // namespace PARAGONE_LEVEL
