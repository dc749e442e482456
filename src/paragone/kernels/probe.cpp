// What this machine gives at best: how fast it reads, and how fast it multiplies when nothing has to be fetched.
#include "probe.h"

#include <algorithm>
#include <chrono>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <vector>

#include "table.h"
#include "team.h"

namespace {

double seconds_of(int threads, const std::function<void(int)>& work) {
    auto begin = std::chrono::steady_clock::now();
    Team::shared().run(threads, work, true);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

double read_rate(const uint8_t* from, long bytes, int threads) {
    constexpr long PIECE = 1 << 18;
    std::atomic<int32_t> kept{0};
    Team& team = Team::shared();
    double seconds = seconds_of(threads, [&](int) {
        for (long piece; (piece = team.next()) * PIECE < bytes;)
            kept += best.read_lines(from + piece * PIECE, std::min(PIECE, bytes - piece * PIECE));
    });
    return bytes / seconds;
}

double multiply_rate(int bits, int threads, bool whole_rows) {
    constexpr long ROUNDS = 1 << 20;
    std::vector<long> done(threads);
    double seconds = seconds_of(threads, [&](int member) { done[member] = best.multiply(bits, whole_rows, ROUNDS); });
    return std::accumulate(done.begin(), done.end(), 0.0) / seconds;
}
