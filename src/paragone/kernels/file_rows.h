// Rows of a matrix in bfloat16 that stays in its file.
#pragma once

#include <cstdint>
#include <vector>

// The rows with these numbers, of D numbers each, of a matrix that begins at byte `offset`, in float32, read without
// mapping the file. False where one of them cannot be read.
bool read_rows(int descriptor, long offset, long D, const std::vector<long>& ids, float* to);
