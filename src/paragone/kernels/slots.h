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

// Where a run of neighbouring slots lies, and what is read some time after it, if anything.
template <class T> struct Run {
    const uint8_t *from, *coming;
    long row, count;
    const T* operator[](long i) const { return (const T*)(from + i * row); }

    // Fetches as much of what comes as slots [i, i + n) are: a little at a time, for memory takes only so many wishes.
    PARAGONE_MEMBER void fetch(long i, long n) const {
        if (!coming) return;
        for (long at = i * row; at < (i + n) * row; at += 64) __builtin_prefetch(coming + at, 0, 2);
    }
};

// The order in which slots [first, first + S) are read: their keys' blocks, their values', and then what comes next.
// Blocks lie anywhere, and each takes less long than memory does.
class Reading {
  public:
    Reading(const Slots& slots, long first, long S) : slots_(slots) {
        long block = first / slots.size;
        own_ = {slots.keys, slots.values, slots.table + block, (first + S - 1) / slots.size - block + 1};
    }

    long count() const { return own_.count; }

    // The slots from `at` on that lie in one block, of `most` in all; it is read as number `number`.
    template <class T> PARAGONE_MEMBER Run<T> run(const uint8_t* base, long at, long most, long number) const {
        long in = at % slots_.size;
        const uint8_t* from = base + slots_.table[at / slots_.size] * slots_.stride + in * slots_.row;
        return {from, coming(number + std::min(AHEAD, 2 * own_.count)), slots_.row, std::min(most, slots_.size - in)};
    }

  private:
    static constexpr long AHEAD = 8;  // blocks

    const uint8_t* coming(long number) const {
        for (const Blocks* blocks : {&own_, &slots_.then})
            for (const uint8_t* base : {blocks->keys, blocks->values}) {
                if (number < blocks->count) return base + blocks->table[number] * slots_.stride;
                number -= blocks->count;
            }
        return nullptr;
    }

    const Slots& slots_;
    Blocks own_;
};

constexpr int SLOTS = 4;  // whose scores, or vectors of a value whose sums, are made at once

// Slots [first, first + S) of the keys, SLOTS or one at a time: use.template operator()<N>(keys, where they begin).
template <class T, class Use> PARAGONE_INLINE void keys_in_turn(const Slots& slots, long first, long S, Use use) {
    Reading reading(slots, first, S);
    for (long s = 0, number = 0; s < S; number++) {
        Run<T> run = reading.run<T>(slots.keys, first + s, S - s, number);
        long i = 0;
        for (; i + SLOTS <= run.count; i += SLOTS) {
            run.fetch(i, SLOTS);
            const T* keys[SLOTS] = {run[i], run[i + 1], run[i + 2], run[i + 3]};
            use.template operator()<SLOTS>(keys, s + i);
        }
        for (; i < run.count; i++) {
            const T* keys[1] = {run[i]};
            use.template operator()<1>(keys, s + i);
        }
        s += run.count;
    }
}

}  // namespace PARAGONE_LEVEL
