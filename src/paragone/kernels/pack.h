// Putting codes, scales and minima into panels; packed.h says how they lie.
#pragma once

#include <cstdint>

#include "table.h"

// To the nearest float16, ties to even; too large ones to the largest.
uint16_t to_half(float x);
// float16, not a number and infinity left out.
float from_half(uint16_t h);

struct Packing : Layout {
    uint8_t* panels;
    long D;

    // Rows [first, first + count): codes (count, D) as they are stored; scales and minima (count, ceil(D / group)).
    void put(long first, long count, const uint8_t* codes, const float* scales, const float* minima) const;
    // Asks for a row's lines, which lie far from each other: nothing else runs ahead over pages.
    void fetch(long row) const;
    // One row in float32.
    void get(long row, float* to) const;
};
