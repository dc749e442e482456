// Many tokens, a tile of them at a time.
#pragma once

#include "vec.h"

namespace PARAGONE_LEVEL {

// Calls tile.operator()<COUNT>(m) for tokens [m, m + count), `each` of them at a time, MOST at most; a last one may be
// fewer.
template <int MOST, class Tile> static void tiles_of(long m, long count, long each, const Tile& tile) {
    if constexpr (MOST > 1)
        if (each < MOST) return tiles_of<MOST - 1>(m, count, each, tile);
    for (; count >= MOST; m += MOST, count -= MOST) tile.template operator()<MOST>(m);
    if constexpr (MOST > 1)
        if (count) tiles_of<MOST - 1>(m, count, count, tile);
}

// The same of all M, in as few tiles as there can be, about as large as each other.
template <int MOST, class Tile> static void tiles_of(long M, const Tile& tile) {
    long shares = (M + MOST - 1) / MOST;
    tiles_of<MOST>(0, M, (M + shares - 1) / shares, tile);
}

// There are fewer registers for addresses than tokens in a tile: three that are as far apart as each other share one.
constexpr int SHARED = 3;
constexpr int addresses(int tokens) { return (tokens + SHARED - 1) / SHARED; }

// Of M tokens, `stride` apart.
template <int M, class T> PARAGONE_INLINE void share_addresses(const T* x, long stride, const T* (&at)[addresses(M)]) {
    for (int i = 0; i < addresses(M); i++) {
        at[i] = x + i * SHARED * stride;
        asm("" : "+r"(at[i]));  // what compilers know to be so far from another they would add up anew each time
    }
}

template <class T> PARAGONE_INLINE const T* shared_address(const T* const* at, int i, long stride) {
    return at[i / SHARED] + i % SHARED * stride;
}

}  // namespace PARAGONE_LEVEL
