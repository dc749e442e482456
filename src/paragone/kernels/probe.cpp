// What this machine gives at best: how fast it reads, and how fast it multiplies when nothing has to be fetched.
#include "probe.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "table.h"
#include "team.h"

namespace {

double seconds_of(int threads, const std::function<void(int)>& work) {
    auto begin = std::chrono::steady_clock::now();
    Team::shared().run(threads, work);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

double read_rate(const uint8_t* from, long bytes, int threads) {
    constexpr long PIECE = 1 << 18, AHEAD = 2048;
    std::vector<uint64_t> sums(threads * 8);
    Team& team = Team::shared();
    double seconds = seconds_of(threads, [&](int member) {
        uint64_t sum = 0;
        for (long piece; (piece = team.next()) * PIECE < bytes;) {
            long end = std::min(bytes, (piece + 1) * PIECE);
            for (long i = piece * PIECE; i + 64 <= end; i += 64) {
                __builtin_prefetch(from + i + AHEAD);
                uint64_t words[8];
                std::memcpy(words, from + i, 64);
                for (uint64_t word : words) sum ^= word;
            }
        }
        sums[member * 8] = sum;
    });
    volatile uint64_t kept = 0;
    for (uint64_t sum : sums) kept = kept ^ sum;
    return bytes / seconds;
}

double multiply_rate(bool integers, int threads) {
    constexpr long ROUNDS = 1 << 20;
    std::vector<long> done(threads);
    double seconds = seconds_of(threads, [&](int member) { done[member] = best.multiply(integers, ROUNDS); });
    return std::accumulate(done.begin(), done.end(), 0.0) / seconds;
}
