#include "compress.h"

#include <algorithm>
#include <cstring>

namespace compressed {

namespace {

// Every so many an input tells what exponents a panel has: of each row others, for some inputs have large numbers in all
// rows.
constexpr long SAMPLED = 3;

uint16_t number(const uint8_t* row, long d) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * d, sizeof bits);
    return bits;
}

typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

// The even bytes of two registers, or the odd ones.
template <int ODD> Bytes every_second(Bytes a, Bytes b) {
    return __builtin_shufflevector(a, b, ODD, 2 + ODD, 4 + ODD, 6 + ODD, 8 + ODD, 10 + ODD, 12 + ODD, 14 + ODD,
                                   16 + ODD, 18 + ODD, 20 + ODD, 22 + ODD, 24 + ODD, 26 + ODD, 28 + ODD, 30 + ODD);
}

bool all(Bytes bytes) {
    uint64_t halves[2];
    std::memcpy(halves, &bytes, sizeof halves);
    return (halves[0] & halves[1]) == ~0ull;
}

}  // namespace

void compress_panel(const uint8_t* const* rows, long count, long D, uint8_t* panel, std::vector<Outlier>& list) {
    uint32_t seen[128] = {};
    for (long r = 0; r < count; r++)
        for (long d = r % SAMPLED; d < D; d += SAMPLED) seen[number(rows[r], d) >> 8 & 127]++;
    uint8_t often[127];  // but for infinity: what stands in a number's place, or behind the last, is finite
    for (int upper = 0; upper < 127; upper++) often[upper] = (uint8_t)upper;
    std::partial_sort(often, often + 8, often + 127, [&](int a, int b) { return seen[a] > seen[b]; });

    uint8_t upper[LINE] = {};
    std::copy(often, often + 8, upper);
    for (int code = 0; code < 8; code++) upper[8 + code] = upper[code] | 0x80;
    std::memcpy(panel, upper, sizeof upper);
    uint8_t* block = panel + LINE;
    for (long at = 0; at < blocks_of(D); at++, block += BLOCK_BYTES) {
        bool whole = at < D / INPUTS;
        for (long four = 0; four < ROWS; four += 4) {
            Words row[4] = {};
            for (long r = 0; r < 4 && four + r < count; r++)
                std::memcpy(&row[r], rows[four + r] + at * sizeof(Words), whole ? sizeof(Words) : D % INPUTS * 2);
            // Words of two inputs, of the four rows: first, second, third and last.
            Words a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
            Words b = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
            Words c = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
            Words d = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
            Bytes pairs[4] = {
                (Bytes)__builtin_shufflevector(a, c, 0, 1, 4, 5), (Bytes)__builtin_shufflevector(a, c, 2, 3, 6, 7),
                (Bytes)__builtin_shufflevector(b, d, 0, 1, 4, 5), (Bytes)__builtin_shufflevector(b, d, 2, 3, 6, 7)};
            Bytes codes[2];
            for (long half = 0; half < 2; half++) {
                Bytes lower = every_second<0>(pairs[2 * half], pairs[2 * half + 1]);
                Bytes higher = every_second<1>(pairs[2 * half], pairs[2 * half + 1]), size = higher & 0x7f;
                Bytes code{}, found{};
                for (uint8_t k = 0; k < 8; k++) {
                    Bytes here = (Bytes)(size == upper[k]);
                    code |= here & k;
                    found |= here;
                }
                codes[half] = (code | (higher >> 7) << 3) & found;
                lower &= found;
                std::memcpy(block + LINE * (1 + half) + 4 * four, &lower, sizeof lower);
                if (all(found)) continue;
                for (long r = four; r < std::min(four + 4, count); r++)
                    for (long i = 4 * half; i < std::min(4 * half + 4, D - at * INPUTS); i++)
                        if (!found[place(r, i) - 4 * four])
                            list.push_back({(int32_t)at, (uint8_t)r, (uint8_t)i, number(rows[r], at * INPUTS + i)});
            }
            Bytes both = codes[0] | codes[1] << 4;
            std::memcpy(block + 4 * four, &both, sizeof both);
        }
    }
    list.push_back(LAST_OUTLIER);
}

void expand_row(const uint8_t* panel, const Outlier* list, long lane, long D, uint16_t* to) {
    const uint8_t* block = panel + LINE;
    for (long b = 0; b < blocks_of(D); b++, block += BLOCK_BYTES)
        for (long i = 0; i < std::min(INPUTS, D - b * INPUTS); i++) {
            long at = place(lane, i);
            int code = i < 4 ? block[at] & 15 : block[at] >> 4;
            to[b * INPUTS + i] = (uint16_t)(panel[code] << 8 | block[LINE + i / 4 * LINE + at]);
        }
    for (const Outlier* one = list; one->block != LAST_OUTLIER.block; one++)
        if (one->lane == lane) to[one->block * INPUTS + one->input] = one->bits;
}

}  // namespace compressed
