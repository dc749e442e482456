#include "plan.h"

#include <algorithm>
#include <chrono>

#include "compress.h"
#include "hadamard.h"

constexpr int32_t FEW = 8;       // tokens of a sequence that attend one by one
constexpr long ROUND = 4;        // where a part is cut: as products like it
constexpr double UNEVEN = 1.25;  // what a piece costs at most, beside the mean
constexpr long LONG = 16;        // rows whose logits take longer than waiting for a thread that another one holds up
constexpr long SPARED = 16;      // rows whose last layer takes longer than setting the others apart

void Inputs::reserve(long rows, long D, long versions, bool code_words, bool words, bool hadamard) {
    if (hadamard) grow(hadamard_, rows * hadamard::token_bytes(D));
    if (versions) grow(quantised_, versions * rows * ((D + 63) / 64));
    if (code_words) grow(code_words_, versions * ((rows + 15) / 16 * 16) * ((D + 63) / 64 * 32));
    if (words) grow(words_, rows * compressed::blocks_of(D) * compressed::INPUTS);
}

// The first slot that the token at slot `at` sees.
int32_t Plan::Reach::first_seen(int32_t at) const {
    return view == View::SLIDING   ? std::max(0, at + 1 - (int32_t)reach)
           : view == View::CHUNKED ? at / (int32_t)reach * (int32_t)reach
                                   : 0;
}

// What follows from the parts: where every token goes, what it sees, and who attends by himself.
void Plan::lay_out(Step& step) const {
    for (int32_t number = 0; number < (int32_t)step.parts.size(); number++) {
        const Part& part = step.parts[number];
        for (int32_t i = 0; i < part.count; i++) step.positions.push_back(part.start + i);
        if (part.whole > FEW && !step.deterministic) step.longer.push_back(number);
        else
            for (int32_t i = 0; i < part.count; i++) step.singles.push_back({part.row + i, number});
    }
    for (size_t number = 0; !step.parts.empty() && number < views_.size(); number++) {
        const Reach& own = views_[number];
        Pool pool;
        for (const Part& part : step.parts) pool.width = std::max(pool.width, (long)part.tables[number].size());
        for (const Part& part : step.parts) {
            const std::vector<int32_t>& table = part.tables[number];
            pool.tables.insert(pool.tables.end(), table.begin(), table.end());
            pool.tables.resize(pool.tables.size() + pool.width - table.size());
            for (int32_t at = part.start; at < part.start + part.count; at++) {
                pool.slots.push_back((int64_t)table[at / step.block_size] * step.block_size + at % step.block_size);
                pool.lasts.push_back(at + 1);
                pool.firsts.push_back(own.first_seen(at));
            }
        }
        pool.runs.push_back(0);
        for (const Single& single : step.singles) {
            long seen = pool.lasts[single.row] - pool.firsts[single.row];
            pool.runs.push_back(pool.runs.back() + (seen + RUN_SLOTS - 1) / RUN_SLOTS);
        }
        step.pools.push_back(std::move(pool));
    }
}

void Plan::add(std::shared_ptr<Op> op) {
    enough_ = std::max(enough_, op->enough());
    if (op->waits()) tail_ = ops_.size();
    for (int buffer : op->kept()) kept_[buffer] = true;
    Cost cost = op->cost();
    row_cost_ += cost.row;
    if (cost.slot) views_.at(cost.pool).slot_cost += cost.slot;
    ops_.push_back(std::move(op));
}

// Rows [first, last) of a step, with what of its parts is in them.
static Step cut(const Step& step, int32_t first, int32_t last, long width) {
    Step own{};
    own.T = last - first;
    own.x = step.x + first * width;
    for (auto [inverse, scale, which] : step.ropes) own.ropes.push_back({inverse, scale, which ? which + first : which});
    own.deterministic = step.deterministic;
    own.bias = step.bias;
    own.bias_stride = step.bias_stride;
    own.block_size = step.block_size;
    for (const Part& part : step.parts) {
        int32_t from = std::max(first, part.row), to = std::min(last, part.row + part.count);
        if (from < to)
            own.parts.push_back({from - first, to - from, part.start + from - part.row, part.whole, 0, part.tables,
                                 (int32_t)(&part - step.parts.data())});
    }
    return own;
}

// The rows of a step that are wanted. The others are read of through the cache alone, so the last layer, once it has
// written its keys and values, has nothing more to do for them.
Step Plan::wanted(const Step& step) const {
    Step own{};
    own.deterministic = step.deterministic;
    own.bias = step.bias;
    own.bias_stride = step.bias_stride;
    own.block_size = step.block_size;
    for (const Part& part : step.parts) {
        if (!part.wanted) continue;
        int32_t skipped = part.count - part.wanted;
        own.parts.push_back({(int32_t)own.T, part.wanted, part.start + skipped, part.whole, part.wanted, part.tables});
        own.T += part.wanted;
    }
    return own;
}

// A step as pieces that cost about the same, each for one thread. It has no more rows than stay in the thread's own
// caches, and what it makes of them no other thread reads but through the cache of keys and values: between
// processors that share no near cache, reading what another has just written takes longer than reading the weights
// once more for every piece. `apart`: all are of whole parts, so that none reads what another puts into the cache.
// None where there are too few rows for that, or they cannot be dealt evenly: then all threads share each operation.
std::vector<Piece> Plan::pieces(const Step& step, int threads, bool& apart) const {
    long least = threads * enough_ * threads / 2;  // more threads share the same memory: each needs more rows
    if (step.parts.empty() || step.out || step.T < least || (threads == 1 && step.T <= best.piece)) return {};
    long count = ((step.T + best.piece - 1) / best.piece + threads - 1) / threads * threads;
    std::vector<long> before{0};  // costs of all rows before a row
    std::vector<bool> begins(step.T);
    for (const Part& part : step.parts) {
        begins[part.row] = true;
        for (int32_t at = part.start; at < part.start + part.count; at++) {
            long cost = row_cost_;
            for (const Reach& own : views_) cost += own.slot_cost * (at + 1 - own.first_seen(at));
            before.push_back(before.back() + cost);
        }
    }
    auto cuts = [&](auto may) {
        std::vector<int32_t> rows{0};
        for (long row = 1, last = 0, piece = 1; piece < count; piece++) {
            // The nearest to its share of the whole, of those where there may be a cut.
            auto from_share = [&](long at) { return std::abs(before[at] * count - before.back() * piece); };
            while (row < step.T && (!may(row) || from_share(row) < from_share(last))) {
                if (may(row)) last = row;
                row++;
            }
            rows.push_back((int32_t)last);
        }
        rows.push_back((int32_t)step.T);
        return rows;
    };
    auto even = [&](const std::vector<int32_t>& rows) {
        for (size_t i = 0; i + 1 < rows.size(); i++)
            if (rows[i] >= rows[i + 1] || (before[rows[i + 1]] - before[rows[i]]) * count > before.back() * UNEVEN)
                return false;
        return true;
    };
    std::vector<int32_t> rows = cuts([&](long row) { return begins[row]; });
    apart = even(rows);
    if (!apart) rows = cuts([](long row) { return row % ROUND == 0; });
    std::vector<Piece> all;
    if (apart || even(rows))
        for (size_t i = 0; i + 1 < rows.size(); i++)
            all.push_back({cut(step, rows[i], rows[i + 1], widths_[Run::X]), {}});
    return all;
}

// What a run of a step, or of a piece of one, works on.
Run Plan::view(const Step& step, Room& room, Team& team, int members, Piece* piece) const {
    Run run{team, step, {}, room.inputs, room.partial, room.own, members};
    run.buffers.resize(widths_.size());
    for (size_t i = 0; i < widths_.size(); i++)
        run.buffers[i] = piece && kept_[i] ? piece->kept[i].data() : room.buffers[i].data();
    return run;
}

// Makes room for it.
void Plan::prepare(const Step& step, Room& room, int members, Piece* piece) const {
    room.buffers.resize(widths_.size());
    if (piece) piece->kept.resize(widths_.size());
    if ((int)room.own.size() < members) room.own.resize(members);
    for (size_t i = 1; i < widths_.size(); i++)
        grow(piece && kept_[i] ? piece->kept[i] : room.buffers[i], step.T * widths_[i]);
    Run run = view(step, room, room.alone, members, piece);
    for (auto& op : ops_) op->prepare(run);
}

// Operations [first, last). Those of the caller's thread are watched.
void Plan::work(Run& run, int member, size_t first, size_t last) {
    bool watched = member == 0 && !seconds_.empty();
    auto before = std::chrono::steady_clock::now();
    for (size_t i = first; i < last; i++) {
        ops_[i]->run(run, run.members == 1 ? 0 : member);
        if (!watched) continue;
        auto now = std::chrono::steady_clock::now();
        seconds_[i] += std::chrono::duration<double>(now - before).count();
        before = now;
    }
}

// Operations [0, end).
void Plan::run_pieces(Step& step, std::vector<Piece>& pieces, bool apart, int threads, size_t end) {
    Team& team = Team::shared();
    while ((int)rooms_.size() <= threads) rooms_.emplace_back();
    Room& common = rooms_[threads];
    if ((int)common.own.size() < threads) common.own.resize(threads);
    common.buffers.resize(widths_.size());
    Run whole = view(step, common, team, threads, nullptr);
    bool one_each = (int)pieces.size() == threads;
    auto shared = [&](size_t op) { return one_each && ops_[op]->shared(step); };
    whole.tiles = &tiles_;
    std::vector<bool> begins(end);
    for (size_t i = 0; i < end; i++) {
        if (shared(i)) ops_[i]->prepare(whole);
        begins[i] = !apart && ops_[i]->begins(step);
        if (!begins[i]) continue;
        if (step.pools.empty()) lay_out(step);
        ops_[i]->prepare_begin(whole);
    }
    for (Piece& piece : pieces) {
        lay_out(piece.step);
        for (int member = 0; member < threads; member++) prepare(piece.step, rooms_[member], 1, &piece);
    }
    team.run(threads, [&](int member) {
        Room& room = rooms_[member];
        for (size_t first = 0, last; first < end; first = last) {
            last = first + 1;
            if (shared(first)) {
                work(whole, member, first, last);
                continue;
            }
            if (begins[first]) ops_[first]->begin(whole, member);
            while (last < end && !shared(last) && (apart || !ops_[last]->waits())) last++;
            // The last rows of a long part see most: they begin.
            for (long piece; (piece = (long)pieces.size() - 1 - team.next()) >= 0;) {
                Run run = view(pieces[piece].step, room, room.alone, 1, &pieces[piece]);
                if (begins[first]) run.tiles = &tiles_;
                room.alone.barrier();  // counts tasks anew: a piece that has thrown has left some
                work(run, member, first, last);
            }
            team.barrier();
        }
    }, true);
}

// Operations [begin, end), each shared by all threads.
void Plan::run_shared(Step& step, int threads, size_t begin, size_t end, Piece* piece) {
    if (rooms_.empty()) rooms_.emplace_back();
    lay_out(step);
    prepare(step, rooms_[0], threads, piece);
    Run run = view(step, rooms_[0], Team::shared(), threads, piece);
    Team::shared().run(threads, [&](int member) { work(run, member, begin, end); }, step.largest && step.T >= LONG);
}

void Plan::run(Step& step, int threads) {
    std::lock_guard lock(turn_);
    bool apart = false;
    std::vector<Piece> all = pieces(step, threads, apart);
    Piece last{wanted(step), {}};
    bool spares = tail_ && last.step.T + SPARED <= step.T;
    size_t end = spares ? tail_ : ops_.size();
    if (all.empty()) run_shared(step, threads, 0, end, nullptr);
    else run_pieces(step, all, apart, threads, end);
    if (!spares || !last.step.T) return;

    auto source = [&](int buffer, long row) {
        if (buffer == Run::X) return step.x + row * widths_[buffer];
        size_t piece = 0;
        for (; piece < all.size() && row >= all[piece].step.T; piece++) row -= all[piece].step.T;
        return (all.empty() ? rooms_[0].buffers : all[piece].kept)[buffer].data() + row * widths_[buffer];
    };
    auto each = [&](int buffer, auto copy) {  // a wanted row of the step, and where it is among those
        float* mine = last.kept[buffer].data();
        for (const Part& part : step.parts)
            for (int32_t i = part.count - part.wanted; i < part.count; i++, mine += widths_[buffer])
                copy(source(buffer, part.row + i), mine);
    };
    last.kept.resize(widths_.size());
    std::vector<int> buffers = ops_[tail_]->kept();
    buffers.push_back(Run::X);
    for (int buffer : buffers) {
        grow(last.kept[buffer], last.step.T * widths_[buffer]);
        each(buffer, [&](const float* from, float* to) { std::copy_n(from, widths_[buffer], to); });
    }
    last.step.x = last.kept[Run::X].data();
    run_shared(last.step, threads, tail_, ops_.size(), &last);
    each(Run::X, [&](float* to, const float* from) { std::copy_n(from, widths_[Run::X], to); });
}

std::vector<std::string> Plan::describe() const {
    std::vector<std::string> lines;
    for (auto& op : ops_) lines.push_back(op->describe());
    return lines;
}
