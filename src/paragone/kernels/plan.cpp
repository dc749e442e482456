#include "plan.h"

#include <algorithm>
#include <chrono>

constexpr int32_t FEW = 8;  // tokens of a sequence that attend one by one

void Inputs::reserve(long rows, long D, long versions, bool words) {
    if (versions) grow(quantised_, versions * rows * ((D + 63) / 64));
    if (words) grow(words_, rows * D);
}

// What follows from the parts: where every token goes, what it sees, and who attends by himself.
void Plan::lay_out(Step& step) const {
    for (int32_t number = 0; number < (int32_t)step.parts.size(); number++) {
        const Part& part = step.parts[number];
        for (int32_t i = 0; i < part.count; i++) step.positions.push_back(part.start + i);
        if (part.count > FEW && !step.deterministic) step.longer.push_back(number);
        else
            for (int32_t i = 0; i < part.count; i++) step.singles.push_back({part.row + i, number});
    }
    for (size_t number = 0; !step.parts.empty() && number < views_.size(); number++) {
        auto [view, reach] = views_[number];
        Pool pool{view, reach, {}, 0, {}, {}, {}};
        for (const Part& part : step.parts) pool.width = std::max(pool.width, (long)part.tables[number].size());
        for (const Part& part : step.parts) {
            const std::vector<int32_t>& table = part.tables[number];
            pool.tables.insert(pool.tables.end(), table.begin(), table.end());
            pool.tables.resize(pool.tables.size() + pool.width - table.size());
            for (int32_t at = part.start; at < part.start + part.count; at++) {
                pool.slots.push_back((int64_t)table[at / step.block_size] * step.block_size + at % step.block_size);
                pool.lasts.push_back(at + 1);
                pool.firsts.push_back(view == View::SLIDING   ? std::max(0, at + 1 - (int32_t)reach)
                                      : view == View::CHUNKED ? at / (int32_t)reach * (int32_t)reach
                                                              : 0);
            }
        }
        step.pools.push_back(std::move(pool));
    }
}

void Plan::run(Step& step, int threads) {
    std::lock_guard lock(turn_);
    lay_out(step);
    for (size_t i = 1; i < widths_.size(); i++) grow(buffers_[i], step.T * widths_[i]);
    if ((int)own_.size() < threads) own_.resize(threads);
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
