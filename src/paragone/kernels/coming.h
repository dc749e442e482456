// Bringing memory near before it is needed.
#pragma once

#include "vec.h"

namespace PARAGONE_LEVEL {

constexpr long LINE = 64;  // bytes that memory gives at a time

// From where a single token's weights are asked for while those at `from` are read; `slow`: a line takes many
// instructions. At `end` where the processor fetches them by itself, faster than it can be told to: AMD's with wide
// registers, unless lines are slow, for then it does not see the next in time. Intel's with AVX-512, whether with tiles
// or with what stands in for pairs of bfloat16, read at half to three quarters of the rate by themselves.
PARAGONE_INLINE const uint8_t* ahead_of(const uint8_t* from, const uint8_t* end, bool slow) {
    if (W < 16) return from + 1024;
    return PARAGONE_TILES || !PAIRS || slow ? from + 6144 : end;
}

// What is fetched while other things are multiplied: so many lines for every block of them, up to an end.
struct Coming {
    const uint8_t *at = nullptr, *end = nullptr;
    long lines = 0;
    bool nearest = false;  // whether into the first cache: in the second it pushes out nothing that is read now

    PARAGONE_MEMBER void fetch_some() {
        if (at >= end) return;
        if (nearest)
            for (long line = 0; line < lines; line++, at += LINE) __builtin_prefetch(at, 0, 3);
        else
            for (long line = 0; line < lines; line++, at += LINE) __builtin_prefetch(at, 0, 2);
    }
};

}  // namespace PARAGONE_LEVEL
