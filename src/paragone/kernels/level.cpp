// Compiled once for every instruction level, which the build names in PARAGONE_LEVEL and PARAGONE_TABLE.
#include "attention.h"
#include "compressed.h"
#include "flash.h"
#include "hadamard_codes.h"
#include "hadamard_linear.h"
#include "packed_linear.h"
#include "peak.h"
#include "round.h"
#include "rowwise.h"

#define PARAGONE_TEXT_(x) #x
#define PARAGONE_TEXT(x) PARAGONE_TEXT_(x)

using namespace PARAGONE_LEVEL;

const Kernels PARAGONE_TABLE = {
    PARAGONE_TEXT(PARAGONE_LEVEL),
    PAIRS,
    FIXED,
    PARAGONE_TILES ? 256 : 128,
    PARAGONE_TILES ? PANEL : 0,
    quantize_inputs,
    hadamard_inputs,
    to_words,
    packed_linear,
#if PARAGONE_TILES
    {LEAST_TOKENS, PACKED_WORDS_ROOM, token_words, packed_words_linear},
#else
    {LONG_MAX, 0, nullptr, nullptr},
#endif
    hadamard_linear,
    compressed_linear,
    compressed_room,
    rms_norm,
    layer_norm,
    gated,
    rotate,
    attend,
    attend_many,
    attend_room,
    make_tile,
    tile_words,
    narrow_all,
    round_row,
    hadamard_row,
    quantize_slot,
    multiply,
    read_lines,
    exponentials,
    softcap,
    largest,
};
