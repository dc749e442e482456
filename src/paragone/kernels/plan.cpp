#include "plan.h"

#include <algorithm>
#include <chrono>

constexpr int32_t FEW = 8;  // tokens of a sequence that attend one by one

void Inputs::reserve(long rows, long D, bool packed, bool words) {
    if (packed) grow(quantised_, rows * ((D + 63) / 64));
    if (words) grow(words_, rows * D);
}

void Plan::run(Step& step, int threads) {
    std::lock_guard lock(turn_);
    for (Pool& pool : step.pools) {
        pool.firsts.resize(step.T);
        pool.lasts.resize(step.T);
        for (const Part& part : step.parts)
            for (int32_t i = 0; i < part.count; i++) {
                int32_t at = part.start + i, reach = (int32_t)pool.reach;
                pool.lasts[part.row + i] = at + 1;
                pool.firsts[part.row + i] = pool.view == View::SLIDING   ? std::max(0, at + 1 - reach)
                                            : pool.view == View::CHUNKED ? at / reach * reach
                                                                         : 0;
            }
    }
    step.singles.clear();
    step.longer.clear();
    for (int32_t number = 0; number < (int32_t)step.parts.size(); number++) {
        const Part& part = step.parts[number];
        if (part.count > FEW && !step.deterministic) step.longer.push_back(number);
        else
            for (int32_t i = 0; i < part.count; i++) step.singles.push_back({part.row + i, number});
    }
    for (size_t i = 1; i < widths_.size(); i++) grow(buffers_[i], step.T * widths_[i]);
    grow(own_, threads);
    Run state{Team::shared(), step, buffers_, inputs_, partial_, own_};
    for (auto& op : ops_) op->prepare(state);
    auto work = [&](int member) {
        auto before = std::chrono::steady_clock::now();
        for (size_t i = 0; i < ops_.size(); i++) {
            ops_[i]->run(state, member);
            if (member || seconds_.empty()) continue;
            auto now = std::chrono::steady_clock::now();
            seconds_[i] += std::chrono::duration<double>(now - before).count();
            before = now;
        }
    };
    Team::shared().run(threads, work);
}

std::vector<std::string> Plan::describe() const {
    std::vector<std::string> lines;
    for (auto& op : ops_) lines.push_back(op->describe());
    return lines;
}
