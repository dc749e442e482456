// Putting codes, scales and minima into panels; packed.h says how they lie.
#pragma once

#include <cstdint>

// To the nearest float16, ties to even; too large ones to the largest.
uint16_t to_half(float x);
// float16, not a number and infinity left out.
float from_half(uint16_t h);

struct Packing {
    uint8_t* panels;
    long D;
    int bits;
    bool has_minimum, fine;
    float unit;

    // Rows [first, first + count): codes (count, D), unsigned; scales and minima (count, ceil(D / group)).
    void put(long first, long count, const uint8_t* codes, const float* scales, const float* minima) const;
    // One row in float32.
    void get(long row, float* to) const;
};
