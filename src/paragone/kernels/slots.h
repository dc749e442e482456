// Where a head's slots lie, and how they are read one after the other.
#pragma once

#include <algorithm>

#include "table.h"
#include "vec.h"

namespace PARAGONE_LEVEL {

// What an eight-bit slot's numbers are to be multiplied with; it lies behind them.
PARAGONE_INLINE float scale_of(const int8_t* row, long E) {
    uint16_t scale;
    std::memcpy(&scale, row + E, sizeof scale);
    return widen(scale);
}
PARAGONE_INLINE float scale_of(const uint16_t*, long) { return 1.0f; }

PARAGONE_INLINE float number(const int8_t* p) { return *p; }
PARAGONE_INLINE float number(const uint16_t* p) { return widen(*p); }

// Where a run of neighbouring slots lies, and what is read after the next one.
template <class T> struct Run {
    const uint8_t *from, *coming;
    long row, count;
    const T* operator[](long i) const { return (const T*)(from + i * row); }

    // Fetches what comes instead of slots [i, i + n): a little at a time, for memory takes only so many wishes.
    PARAGONE_MEMBER void fetch(long i, long n) const {
        for (long at = i * row; at < (i + n) * row; at += 64) __builtin_prefetch(coming + at);
    }
};

// The slots from `at` on that lie in one block, of `most` in all. The next block but one comes meanwhile: blocks lie
// anywhere, and each takes less long than memory does.
template <class T>
PARAGONE_INLINE Run<T> run_at(const uint8_t* base, const Slots& slots, long at, long most, const After& after) {
    long block = at / slots.size, in = at % slots.size, over = block + 1 - (at + most - 1) / slots.size;
    const uint8_t* from = base + slots.table[block] * slots.stride + in * slots.row;
    const uint8_t* coming = over < 0              ? base + slots.table[block + 2] * slots.stride
                            : over < after.blocks ? after.base + after.table[over] * slots.stride
                                                  : from;
    return {from, coming, slots.row, std::min(most, slots.size - in)};
}

}  // namespace PARAGONE_LEVEL
