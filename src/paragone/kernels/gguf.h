// Rows of GGUF's quantised types taken apart, as ggml-quants.c defines them.
#pragma once

#include <cstdint>
#include <string>

// Codes as packed weights keep them (one byte each, unsigned), or, of the types whose numbers are levels, those plus
// 128; scales and minima of a run of inputs, minima of none where the type has none. `book`: entries of a codebook, one
// after the other, for the types that have one.
using Unpack = void (*)(const uint8_t* block, const int8_t* book, uint8_t* codes, float* scales, float* minima);

struct GgufType {
    const char* name;
    long inputs, bytes;  // of a block
    long groups;         // scales of a block
    Unpack unpack;
};

// The type of a name; none for those that are not known here.
const GgufType* gguf_type(const std::string& name);
