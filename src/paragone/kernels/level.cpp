// Compiled once for every instruction level, which the build names in PARAGONE_LEVEL and PARAGONE_TABLE.
#include "attention.h"
#include "linear.h"
#include "rowwise.h"

#define PARAGONE_TEXT_(x) #x
#define PARAGONE_TEXT(x) PARAGONE_TEXT_(x)

const Kernels PARAGONE_TABLE = {
    PARAGONE_TEXT(PARAGONE_LEVEL),
    PARAGONE_LEVEL::PAIRS,
    PARAGONE_LEVEL::linear,
    PARAGONE_LEVEL::widen_all,
    PARAGONE_LEVEL::narrow_all,
    PARAGONE_LEVEL::dequantize,
    PARAGONE_LEVEL::rms_norm,
    PARAGONE_LEVEL::rotate,
    PARAGONE_LEVEL::gated,
    PARAGONE_LEVEL::attend,
    PARAGONE_LEVEL::quantize,
};
