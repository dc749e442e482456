// Bringing memory near before it is needed.
#pragma once

#include "vec.h"

namespace PARAGONE_LEVEL {

constexpr long LINE = 64;  // bytes that memory gives at a time

// What is fetched while other things are multiplied: so many lines for every block of them, up to an end.
struct Coming {
    const uint8_t *at = nullptr, *end = nullptr;
    long lines = 0;

    PARAGONE_MEMBER void fetch_some() {
        if (at >= end) return;
        // It waits in the second cache: in the first it would push out what is read now.
        for (long line = 0; line < lines; line++, at += LINE) __builtin_prefetch(at, 0, 2);
    }
};

}  // namespace PARAGONE_LEVEL
