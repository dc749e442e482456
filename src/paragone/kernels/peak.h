// Products on registers alone, to learn how many a core can make. Returns how many operations it were, a product and a
// sum being two.
#pragma once

#include "vec.h"

namespace PARAGONE_LEVEL {

constexpr int CHAINS = 12;  // of dependent products, side by side

static long multiply(bool integers, long rounds) {
    volatile int32_t unknown = 0x01010101;  // or the compiler would know what comes out
    VI whole[CHAINS], x = unknown - VI{};
    VF sums[CHAINS];
    for (int c = 0; c < CHAINS; c++) {
        whole[c] = unknown - VI{};
        sums[c] = (VF)whole[c];
    }
    for (long r = 0; integers && r < rounds; r++)
        for (int c = 0; c < CHAINS; c++) whole[c] = dot_quads(whole[c], x, x);
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

}  // namespace PARAGONE_LEVEL
