// Round-to-nearest quantisation of a row to four bits, 32 numbers a scale; quant/rtn.py defines it.
#pragma once

#include <algorithm>

#include "bytes.h"
#include "functions.h"
#include "pack.h"

namespace PARAGONE_LEVEL {

constexpr long GROUP = 32;

// x as it comes back from float16 in units of `unit`.
PARAGONE_INLINE float stored(float x, float unit) { return from_half(to_half(x / unit)) * unit; }

// Codes count from the minimum.
static void round_row(const float* x, long D, float unit, uint8_t* codes, float* scales, float* minima) {
    const float smallest = 0x1p-24f * unit;  // above zero in float16
    for (long d = 0; d < D; d += GROUP, codes += GROUP) {
        float own[GROUP];
        long there = std::min(GROUP, D - d);
        std::copy_n(x + d, there, own);
        std::fill(own + there, own + GROUP, own[there - 1]);
        VF low = load(own), high = low;
        for (long i = W; i < GROUP; i += W) {
            low = smaller(low, load(own + i));
            high = larger(high, load(own + i));
        }
        float from = *minima++ = stored(-largest_of(-low), unit);
        float scale = *scales++ = std::max(stored((largest_of(high) - from) / 15, unit), smallest);
        uint8_t rounded[GROUP];
        for (long i = 0; i < GROUP; i += W) {
            VF code = smaller(larger((load(own + i) - from) / splat(scale), VF{}), splat(15.0f)) + WHOLE;
            store_bytes((int8_t*)rounded + i, (VI)code - WHOLE_BITS);
        }
        std::copy_n(rounded, there, codes);
    }
}

}  // namespace PARAGONE_LEVEL
