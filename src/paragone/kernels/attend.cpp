// Attention as an operation of a plan: how its queries are divided over a team.
#include <algorithm>
#include <cmath>

#include "ops.h"

namespace {

constexpr long MOST_SUMS = 4 << 20;  // floats: of the runs of slots of single queries that are kept at once
constexpr long MOST_TILES = 64 << 20;  // bytes of tiles that are made for all
constexpr long LEAST_ROWS = 96;
constexpr long TASKS = 6;        // for every member of several, while there are rows enough

}  // namespace

Slots Attend::slots(const Run& run, long number, long k) const {
    const Pool& pool = this->pool(run);
    long row = spec_.row_bytes(), head = spec_.block_size * row;
    const uint8_t* keys = spec_.cache + k * head;
    const int32_t* table = pool.tables.data() + number * pool.width;
    return {keys, keys + spec_.K * head, table, spec_.block_size, spec_.block_bytes, row, spec_.eight_bit};
}

Scoring Attend::scoring(const Run& run, long k) const {
    const Step& step = run.step;
    long group = spec_.H / spec_.K;
    return {softcap_, step.bias ? step.bias + k * group * step.bias_stride : nullptr, step.bias_stride};
}

long Attend::tile(const Run& run) const {
    long tokens = 0, group = spec_.H / spec_.K;
    long most = 6 * best.piece;  // queries of a head: keys are read that often fewer times
    for (int number : run.step.longer) tokens += run.step.parts[number].count;
    if (run.members == 1) return std::max(1L, most / group);
    long rows = std::clamp(tokens * spec_.H / (TASKS * run.members), LEAST_ROWS, most);
    return std::max(1L, rows / group);
}

// Single tokens [first, ...) whose sums are kept at once: however many see however much, that takes bounded room.
long Attend::upto(const Run& run, long first) const {
    const std::vector<int64_t>& runs = pool(run).runs;
    long most = runs[first] + MOST_SUMS / (spec_.H * (spec_.E + 2));
    long last = std::upper_bound(runs.begin() + first, runs.end(), most) - runs.begin() - 1;
    return std::max(last, std::min(first + 1, (long)run.step.singles.size()));
}

void Attend::prepare(Run& run) const {
    long group = spec_.H / spec_.K, each = group * (spec_.E + 2), singles = (long)run.step.singles.size(), most = 0;
    const std::vector<int64_t>& runs = pool(run).runs;
    for (long first = 0, last; first < singles; first = last) {
        last = upto(run, first);
        most = std::max(most, runs[last] - runs[first]);
    }
    if (runs[singles] > singles) grow(run.partial, most * spec_.K * each);
    for (Own& own : run.own) {
        grow(own.floats, each + 4 * RUN_SLOTS + 2 * (spec_.E + 32));
        if (!run.step.longer.empty()) grow(own.room, best.attend_room(tile(run) * group, spec_.E));
    }
}

void Attend::run(Run& run, int member) const {
    const std::vector<int64_t>& runs = pool(run).runs;
    long singles = (long)run.step.singles.size();
    for (long first = 0, last;; first = last) {
        last = upto(run, first);
        long tasks = (runs[last] - runs[first]) * spec_.K, taken, number = first;
        while ((taken = run.team.next()) < tasks) single(run, run.own[member], first, taken, tasks, number);
        if (last == singles) longer(run, run.own[member], tasks, taken);
        run.team.barrier();
        if (runs[last] - runs[first] > last - first) {
            for (long head; (head = run.team.next()) < (last - first) * spec_.K;) join(run, first, head);
            run.team.barrier();
        }
        if (last == singles) return;
    }
}

// Tasks from `taken` on, the first of which is number `task`, of the parts whose tokens attend together.
void Attend::longer(Run& run, Own& own, long task, long taken) const {
    long size = tile(run);
    for (int number : run.step.longer)
        for (long k = 0; k < spec_.K; k++)
            // The last tokens see most: they begin.
            for (long at = (run.step.parts[number].count - 1) / size * size; at >= 0; at -= size, task++)
                if (task == taken) {
                    many(run, own, number, at, size, k);
                    taken = run.team.next();
                }
}

// Task number `task` of single tokens from `first` on: of one that is not before `number`, which becomes it.
Attend::Look Attend::look(const Run& run, long first, long task, long& number) const {
    const Pool& pool = this->pool(run);
    long at = pool.runs[first] + task / spec_.K;
    while (pool.runs[number + 1] <= at) number++;
    long runs = pool.runs[number + 1] - pool.runs[number];
    long own = task - (pool.runs[number] - pool.runs[first]) * spec_.K;
    const Single& one = run.step.singles[number];
    long from = pool.firsts[one.row] + own % runs * RUN_SLOTS;
    return {one, own / runs, runs, from, std::min(RUN_SLOTS, pool.lasts[one.row] - from)};
}

void Attend::single(Run& run, Own& own, long first, long task, long tasks, long& number) const {
    long group = spec_.H / spec_.K, E = spec_.E, each = group * (E + 2);
    auto [one, k, runs, from, count] = look(run, first, task, number);
    float* sums = runs > 1 ? run.partial.data() + task * each : own.floats.data();
    float *largest = sums + group * E, *totals = largest + group;
    const float* q = run.buffer(spec_.buffer) + (one.row * (spec_.H + 2 * spec_.K) + k * group) * E;
    Slots slots = this->slots(run, one.part, k);
    if (long next = task + run.members; next < tasks) {  // this thread's, unless one is held up
        long its_number = number;
        Look other = look(run, first, next, its_number);
        Slots others = this->slots(run, other.one.part, other.k);
        long block = other.from / spec_.block_size, last = (other.from + other.count - 1) / spec_.block_size;
        slots.then = {others.keys, others.values, others.table + block, last - block + 1};
    }
    best.attend(q, group, slots, from, count, E, scoring(run, k), own.floats.data() + each, sums, largest, totals);
    if (runs > 1) return;
    float* to = run.buffer(target_) + (one.row * spec_.H + k * group) * E;
    for (long h = 0; h < group; h++) {
        float inverse = 1.0f / totals[h];
        for (long e = 0; e < E; e++) to[h * E + e] = sums[h * E + e] * inverse;
    }
}

// Puts the runs of one token's queries of a head together: heads of single tokens from `first` on.
void Attend::join(Run& run, long first, long head) const {
    long group = spec_.H / spec_.K, E = spec_.E, each = group * (E + 2);
    long number = first + head / spec_.K, k = head % spec_.K;
    const std::vector<int64_t>& runs = pool(run).runs;
    long mine = runs[number + 1] - runs[number];
    if (mine < 2) return;
    const float* parts = run.partial.data() + ((runs[number] - runs[first]) * spec_.K + k * mine) * each;
    float* to = run.buffer(target_) + (run.step.singles[number].row * spec_.H + k * group) * E;
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

// Where a part is cut, every piece would make tiles of all that it sees.
bool Attend::begins(const Step& step) const {
    long tiles = 0;
    bool cut = false;
    for (const Part& part : step.parts) {
        cut |= part.count > best.piece;
        tiles += part.count > best.piece ? (part.start + part.count) / TILE_SLOTS + 1 : 0;
    }
    return cut && !step.deterministic && tiles * spec_.K * best.tile_words(spec_.E) * (long)sizeof(Word) <= MOST_TILES;
}

void Attend::prepare_begin(Run& run) const {
    const Pool& pool = this->pool(run);
    std::vector<std::vector<AllTiles::Of>>& pools = run.tiles->pools;
    pools.resize(std::max(pools.size(), (size_t)spec_.pool + 1));
    std::vector<AllTiles::Of>& parts = pools[spec_.pool];
    parts.clear();
    long all = 0;
    for (const Part& part : run.step.parts) {
        long first = pool.firsts[part.row] / TILE_SLOTS;
        long upto = part.count > best.piece ? (pool.lasts[part.row + part.count - 1] + TILE_SLOTS - 1) / TILE_SLOTS : first;
        parts.push_back({first, upto, all});
        all += upto - first;
    }
    grow(run.tiles->words, all * spec_.K * best.tile_words(spec_.E));
    for (Own& own : run.own) grow(own.room, (TILE_SLOTS + 1) * spec_.E * sizeof(uint16_t));
}

void Attend::begin(Run& run, int member) const {
    const Pool& pool = this->pool(run);
    long stride = best.tile_words(spec_.E), taken = run.team.next(), task = 0;
    for (size_t number = 0; number < run.step.parts.size(); number++) {
        const Part& part = run.step.parts[number];
        auto [first, upto, at] = run.tiles->pools[spec_.pool][number];
        for (long tile = first; tile < upto; tile++)
            for (long k = 0; k < spec_.K; k++, task++) {
                if (task != taken) continue;
                best.make_tile(slots(run, (long)number, k), tile, pool.firsts[part.row],
                               pool.lasts[part.row + part.count - 1], spec_.E,
                               run.tiles->words.data() + ((at + tile - first) * spec_.K + k) * stride,
                               (uint16_t*)run.own[member].room.data());
                taken = run.team.next();
            }
    }
    run.team.barrier();
}

// Of a part, for one head.
SlotTiles Attend::tiles(const Run& run, int number, long k) const {
    if (!run.tiles) return {};
    auto [first, upto, at] = run.tiles->pools[spec_.pool][run.step.parts[number].number];
    if (first == upto) return {};
    long stride = best.tile_words(spec_.E);
    return {run.tiles->words.data() + (at * spec_.K + k) * stride, first, spec_.K * stride};
}

// `size` tokens of a part, from `at` on.
void Attend::many(Run& run, Own& own, int number, long at, long size, long k) const {
    const Part& part = run.step.parts[number];
    const Pool& pool = this->pool(run);
    long group = spec_.H / spec_.K, E = spec_.E, width = (spec_.H + 2 * spec_.K) * E, row = part.row + at;
    Queries queries{run.buffer(spec_.buffer) + row * width + k * group * E,
                    std::min(size, part.count - at),
                    width,
                    pool.firsts.data() + row,
                    pool.lasts.data() + row,
                    run.buffer(target_) + (row * spec_.H + k * group) * E,
                    spec_.H * E};
    best.attend_many(queries, group, slots(run, number, k), tiles(run, number, k), E, scoring(run, k),
                     own.room.data());
}

std::string Attend::describe() const {
    return "attend " + std::to_string(spec_.H) + " x " + std::to_string(spec_.E) + " over " +
           std::to_string(spec_.K) + (spec_.eight_bit ? ", 8 bits" : ", bf16") +
           (best.fixed ? " (whole numbers for many)" : "") + (softcap_ > 0 ? ", softcap" : "") + seen_;
}
