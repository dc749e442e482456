// What a core can do at best: products on registers alone, and reading.
#pragma once

#include "bytes.h"
#include "fixed.h"
#include "functions.h"
#include "tiles.h"

namespace PARAGONE_LEVEL {

// Of dependent products, side by side: those of codes fit into the registers with their sums. A Zen 5 makes two pairs of
// bfloat16 a cycle, each of which takes six.
constexpr int CHAINS = W == 16 ? 12 : 6, FLOAT_CHAINS = W == 16 ? 16 : 12;
// Words of four bytes whose sum has a scale of its own: in the formats of files, and where a row has one scale.
constexpr int SCALED = 8, WHOLE_ROW = 256;

// Sums of WORDS words of codes of so many bits, in every chain.
template <int BITS, int WORDS> PARAGONE_INLINE void sums_of(VI (&whole)[CHAINS], VI& x) {
#if PARAGONE_LANES > 4
    if constexpr (!QUADS) {
        VT halves[CHAINS];
#pragma GCC unroll 8
        for (int word = 0; word < WORDS; word++)
#pragma GCC unroll 12
            for (int c = 0; c < CHAINS; c++) {
                x = in_turn(x);
                if constexpr (BITS == 4) {
                    VT two = dot_bytes(x, x);
                    halves[c] = in_turn(word ? halves[c] + two : two);
                } else {
                    VI both = dot_halves(dot_bytes(x, with_signs(x, x)), 1 - VT{});
                    whole[c] = in_turn(word ? whole[c] + both : both);
                }
            }
#pragma GCC unroll 12
        for (int c = 0; BITS == 4 && c < CHAINS; c++) whole[c] = dot_halves(halves[c], 1 - VT{});
        return;
    }
#endif
#pragma GCC unroll 8
    for (int word = 0; word < WORDS; word++)
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) whole[c] = dot_quads(whole[c], x, x);
}

// Returns how many operations it were, a product and a sum being two. Codes of 4 or 8 bits are multiplied as bytes, and
// each sum is brought to the scale of its weight's codes and that of its input's: no two sums share both.
template <int BITS, int WORDS> static long multiply_codes(long rounds) {
    volatile int32_t unknown = 0x01010101;  // or the compiler would know what comes out
    VI whole[CHAINS], x = unknown - VI{};
    VF sums[CHAINS] = {}, scale = (VF)x, input_scale = scale;
    for (int c = 0; c < CHAINS; c++) whole[c] = unknown - VI{};
    for (long r = 0; r < rounds; r += WORDS) {
        sums_of<BITS, WORDS>(whole, x);
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) {
#if PARAGONE_LANES > 4
            scale = in_turn(scale);  // another one, for all that the compiler knows
#endif
            sums[c] = multiply_add(__builtin_convertvector(whole[c], VF), scale * input_scale, sums[c]);
        }
    }
    for (int c = 1; c < CHAINS; c++) sums[0] += sums[c];
    volatile float kept = sums[0][0];
    (void)kept;
    return rounds * CHAINS * 2 * 4 * W;
}

// The same of numbers that are not quantised: those of weights, or those that prompts' attention is made of.
template <bool OF_ATTENTION> static long multiply_numbers(long rounds) {
    constexpr bool WHOLE_NUMBERS = OF_ATTENTION && FIXED;
    volatile int32_t unknown = 0x01010101;
    VI x = unknown - VI{};
    VF sums[FLOAT_CHAINS];
    for (VF& sum : sums) sum = (VF)(unknown - VI{});  // each read anew: equal chains would be made once for all
    for (long r = 0; r < rounds; r++)
#pragma GCC unroll 16
        for (int c = 0; c < FLOAT_CHAINS; c++) {
#if PARAGONE_FIXED
            if constexpr (WHOLE_NUMBERS) {
                sums[c] = (VF)dot_fixed((VI)sums[c], x, x);
                continue;
            }
#endif
#if defined(__AVX512BF16__)
            sums[c] = dot_pairs(sums[c], x, x);
#else
            sums[c] = multiply_add(sums[c], (VF)x, (VF)x);
#endif
        }
    for (int c = 1; c < FLOAT_CHAINS; c++) sums[0] += sums[c];
    volatile float kept = sums[0][0];
    (void)kept;
    return rounds * FLOAT_CHAINS * 2 * (WHOLE_NUMBERS ? 2 : NUMBERS) * W;
}

#if PARAGONE_TILES
// The same in matrix units, which have one rate for sums of whole rows of codes and one for those of bfloat16. Weights
// of other formats become bfloat16 first, which is not counted.
template <bool CODES> static long multiply_in_tiles(long rounds) {
    WholeTiles use;
    alignas(64) static const uint8_t numbers[TILE_ROWS][64] = {};
    TILE_LOAD(4, numbers, 64);
    TILE_LOAD(5, numbers, 64);
    zero_sums();
    for (long r = 0; r < rounds; r += 16) {
        if constexpr (CODES) {
            TILE_DOT_QUADS(0, 4, 5);
            TILE_DOT_QUADS(1, 4, 5);
            TILE_DOT_QUADS(2, 4, 5);
            TILE_DOT_QUADS(3, 4, 5);
        } else {
            TILE_DOT_PAIRS(0, 4, 5);
            TILE_DOT_PAIRS(1, 4, 5);
            TILE_DOT_PAIRS(2, 4, 5);
            TILE_DOT_PAIRS(3, 4, 5);
        }
    }
    return (rounds + 15) / 16 * 4 * 2 * TILE_ROWS * 16 * (CODES ? 64 : 32);
}
#endif

static long multiply(int bits, bool whole_rows, long rounds) {
#if PARAGONE_TILES
    return whole_rows && bits < 16 ? multiply_in_tiles<true>(rounds) : multiply_in_tiles<false>(rounds);
#endif
    return bits == 4    ? multiply_codes<4, SCALED>(rounds)
           : bits == 16 ? (whole_rows ? multiply_numbers<true>(rounds) : multiply_numbers<false>(rounds))
           : whole_rows ? multiply_codes<8, WHOLE_ROW>(rounds)
                        : multiply_codes<8, SCALED>(rounds);
}

// Reads whole lines; what it returns keeps the reading from being left out.
static int32_t read_lines(const uint8_t* from, long bytes) {
    VI seen = {};
    for (long i = 0; i + 64 <= bytes; i += 64)
        for (long j = 0; j < 64; j += sizeof seen) seen ^= load_words(from + i + j);
    return largest_of(seen);
}

}  // namespace PARAGONE_LEVEL
