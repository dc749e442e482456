// Bringing memory near before it is needed.
#pragma once

#include "vec.h"

namespace PARAGONE_LEVEL {

constexpr long LINE = 64;  // bytes that memory gives at a time

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
