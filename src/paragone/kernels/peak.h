// What a core can do at best: products on registers alone, and reading.
#pragma once

#include "vec.h"

namespace PARAGONE_LEVEL {

constexpr int CHAINS = W == 16 ? 12 : 6;  // of dependent products, side by side: with their sums they fit into the registers
constexpr int SCALED = 8;  // words of four bytes whose sum has a scale of its own, as in the formats of files

// Returns how many operations it were, a product and a sum being two. What bytes give is brought to scale: every
// product with quantised weights needs that, too.
static long multiply(bool integers, long rounds) {
    volatile int32_t unknown = 0x01010101;  // or the compiler would know what comes out
    VI whole[CHAINS], x = unknown - VI{};
    VF sums[CHAINS], scale = (VF)x;
    for (int c = 0; c < CHAINS; c++) {
        whole[c] = unknown - VI{};
        sums[c] = (VF)whole[c];
    }
    for (long r = 0; integers && r < rounds; r += SCALED) {
#pragma GCC unroll 8
        for (int word = 0; word < SCALED; word++)
#pragma GCC unroll 12
            for (int c = 0; c < CHAINS; c++)
#if PARAGONE_LANES > 4
                whole[c] = QUADS ? dot_quads(whole[c], x, x) : (VI)((VT)whole[c] + dot_bytes(x = in_turn(x), x));
#else
                whole[c] = dot_quads(whole[c], x, x);
#endif
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) {
            VI sum = whole[c];
#if PARAGONE_LANES > 4
            if (!QUADS) sum = dot_halves((VT)sum, 1 - VT{});
#endif
            sums[c] += __builtin_convertvector(sum, VF) * scale;
        }
    }
    for (long r = 0; !integers && r < rounds; r++)
        for (int c = 0; c < CHAINS; c++)
#if defined(__AVX512BF16__)
            sums[c] = dot_pairs(sums[c], x, x);
#else
            sums[c] = sums[c] * (VF)x + (VF)x;
#endif
    for (int c = 1; c < CHAINS; c++) {
        whole[0] += whole[c];
        sums[0] += sums[c];
    }
    volatile float kept = sums[0][0] + whole[0][0];
    (void)kept;
    return rounds * CHAINS * 2 * (integers ? 4 * W : NUMBERS * W);
}

// Reads whole lines; what it returns keeps the reading from being left out.
static int32_t read_lines(const uint8_t* from, long bytes) {
    VI seen = {};
    for (long i = 0; i + 64 <= bytes; i += 64)
        for (long j = 0; j < 64; j += sizeof seen) seen ^= load_words(from + i + j);
    return largest_of(seen);
}

}  // namespace PARAGONE_LEVEL
