// Attention as an operation of a plan: how its queries are divided over a team.
#include <algorithm>
#include <cmath>

#include "ops.h"

namespace {

constexpr long RUN = 256;       // slots that one task looks at for a single query
constexpr long MOST_ROWS = 384;  // queries of a head that one task has at once: keys are read that often fewer times
constexpr long LEAST_ROWS = 96;
constexpr long TASKS = 6;        // for every member, while there are rows enough

}  // namespace

Slots Attend::slots(const Run& run, long number, long k) const {
    const Pool& pool = run.step.pools[spec_.pool];
    long row = spec_.row_bytes(), head = spec_.block_size * row;
    const uint8_t* keys = spec_.cache + k * head;
    const int32_t* table = pool.tables.data() + number * pool.width;
    return {keys, keys + spec_.K * head, table, spec_.block_size, 2 * spec_.K * head, row, spec_.eight_bit};
}

Scoring Attend::scoring(const Run& run, long k) const {
    const Step& step = run.step;
    long group = spec_.H / spec_.K;
    return {softcap_, step.bias ? step.bias + k * group * step.bias_stride : nullptr, step.bias_stride};
}

long Attend::tile(const Run& run) const {
    long tokens = 0, group = spec_.H / spec_.K;
    for (int number : run.step.longer) tokens += run.step.parts[number].count;
    long rows = std::clamp(tokens * spec_.H / (TASKS * run.members), LEAST_ROWS, MOST_ROWS);
    return std::max(1L, rows / group);
}

long Attend::runs(const Run& run) const {
    const Pool& pool = run.step.pools[spec_.pool];
    long longest = 0;
    for (const Single& single : run.step.singles)
        longest = std::max<long>(longest, pool.lasts[single.row] - pool.firsts[single.row]);
    return (longest + RUN - 1) / RUN;
}

void Attend::prepare(Run& run) const {
    long group = spec_.H / spec_.K, each = group * (spec_.E + 2), count = runs(run);
    if (count > 1) grow(run.partial, run.step.singles.size() * spec_.K * count * each);
    for (Own& own : run.own) {
        grow(own.floats, each + 4 * RUN);
        if (!run.step.longer.empty()) grow(own.room, best.attend_room(tile(run) * group, spec_.E));
    }
}

void Attend::run(Run& run, int member) const {
    const Step& step = run.step;
    Own& own = run.own[member];
    long count = runs(run), singles = (long)step.singles.size() * spec_.K;
    long taken = run.team.next();
    for (; taken < singles * count; taken = run.team.next()) single(run, own, taken, count);
    long task = singles * count, size = tile(run);
    for (int number : step.longer)
        for (long k = 0; k < spec_.K; k++)
            // The last tokens see most: they begin.
            for (long at = (step.parts[number].count - 1) / size * size; at >= 0; at -= size, task++)
                if (task == taken) {
                    many(run, own, number, at, size, k);
                    taken = run.team.next();
                }
    run.team.barrier();
    if (count < 2) return;
    for (long head; (head = run.team.next()) < singles;) join(run, head, count);
    run.team.barrier();
}

// A run of the slots that one token's queries of head k see.
void Attend::single(Run& run, Own& own, long task, long runs) const {
    long group = spec_.H / spec_.K, E = spec_.E, each = group * (E + 2);
    const Single& one = run.step.singles[task / runs / spec_.K];
    long k = task / runs % spec_.K, first = task % runs * RUN;
    const Pool& pool = run.step.pools[spec_.pool];
    long from = pool.firsts[one.row], seen = pool.lasts[one.row] - from;
    if (first >= seen) return;
    float* sums = seen > RUN ? run.partial.data() + task * each : own.floats.data();
    float *largest = sums + group * E, *totals = largest + group;
    const float* q = run.buffer(spec_.buffer) + (one.row * (spec_.H + 2 * spec_.K) + k * group) * E;
    Slots own_slots = slots(run, one.part, k);
    if (size_t next = (task + 1) / runs / spec_.K; run.members == 1 && runs == 1 && next < run.step.singles.size()) {
        const Single& other = run.step.singles[next];
        Slots others = slots(run, other.part, (task + 1) % spec_.K);
        long block = pool.firsts[other.row] / spec_.block_size;
        own_slots.then = {others.keys, others.table + block,
                          (pool.lasts[other.row] - 1) / spec_.block_size - block + 1};
    }
    best.attend(q, group, own_slots, from + first, std::min(RUN, seen - first), E, scoring(run, k),
                own.floats.data() + each, sums, largest, totals);
    if (seen > RUN) return;
    float* to = run.buffer(target_) + (one.row * spec_.H + k * group) * E;
    for (long h = 0; h < group; h++) {
        float inverse = 1.0f / totals[h];
        for (long e = 0; e < E; e++) to[h * E + e] = sums[h * E + e] * inverse;
    }
}

// Puts the runs of one token's queries of a head together.
void Attend::join(Run& run, long head, long runs) const {
    long group = spec_.H / spec_.K, E = spec_.E, each = group * (E + 2);
    const Single& one = run.step.singles[head / spec_.K];
    const Pool& pool = run.step.pools[spec_.pool];
    long mine = (pool.lasts[one.row] - pool.firsts[one.row] + RUN - 1) / RUN;
    if (mine < 2) return;
    const float* parts = run.partial.data() + head * runs * each;
    float* to = run.buffer(target_) + (one.row * spec_.H + head % spec_.K * group) * E;
    for (long h = 0; h < group; h++) {
        float top = parts[group * E + h], whole = 0;
        for (long part = 1; part < mine; part++) top = std::max(top, parts[part * each + group * E + h]);
        std::fill(to + h * E, to + (h + 1) * E, 0.0f);
        for (long part = 0; part < mine; part++) {
            const float* from = parts + part * each;
            float share = std::exp(from[group * E + h] - top);
            whole += share * from[group * E + group + h];
            for (long e = 0; e < E; e++) to[h * E + e] += share * from[h * E + e];
        }
        for (long e = 0; e < E; e++) to[h * E + e] /= whole;
    }
}

// `size` tokens of a part, from `at` on.
void Attend::many(Run& run, Own& own, int number, long at, long size, long k) const {
    const Part& part = run.step.parts[number];
    const Pool& pool = run.step.pools[spec_.pool];
    long group = spec_.H / spec_.K, E = spec_.E, width = (spec_.H + 2 * spec_.K) * E, row = part.row + at;
    Queries queries{run.buffer(spec_.buffer) + row * width + k * group * E,
                    std::min(size, part.count - at),
                    width,
                    pool.firsts.data() + row,
                    pool.lasts.data() + row,
                    run.buffer(target_) + (row * spec_.H + k * group) * E,
                    spec_.H * E};
    best.attend_many(queries, group, slots(run, number, k), E, scoring(run, k), own.room.data());
}

std::string Attend::describe() const {
    return "attend " + std::to_string(spec_.H) + " x " + std::to_string(spec_.E) + " over " +
           std::to_string(spec_.K) + (spec_.eight_bit ? ", 8 bits" : ", bf16") + (softcap_ > 0 ? ", softcap" : "");
}
