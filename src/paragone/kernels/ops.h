// The operations that plans are made of. Each ends with a barrier: what it has written is there for the next.
#pragma once

#include "plan.h"

// How a row becomes the input of a product: normed, or as it is.
struct Prologue {
    enum Kind { NONE, RMS_NORM, LAYER_NORM } kind = NONE;
    std::vector<float> weight, bias;
    float eps = 0;

    // Row `from` as the input, `width` numbers: where it lies, or in `to`.
    const float* apply(const float* from, long width, float* to) const;
    std::string describe() const;
};

// What becomes of a product's outputs: act(y); or act(gate) * up, of which the first half of the rows and the second
// half are.
struct Epilogue {
    enum Kind { NONE, GATED, ACTIVATED } kind = NONE;
    Activation activation = SILU;

    std::string describe() const;
};

// A part of a weight's rows: quantised, or in bfloat16.
struct Matrix {
    enum Kind { PACKED, HADAMARD, COMPRESSED } kind;
    long rows;
    Packed packed;
    Hadamard hadamard;
    Compressed compressed;
    const int32_t* order = nullptr;  // of a packed one's inputs: its input i is input order[i]
    int version = 0;                 // of the inputs that it takes: each order makes one

    long blocks() const { return (rows + 15) / 16; }
    long panel_bytes(long D) const;  // of a block's D inputs
    // Whether it takes M tokens' codes in words. `alike`: all tokens alike, however many there are.
    bool in_words(long M, bool alike) const;
    // Blocks [first, last) of 16 rows by M tokens.
    void multiply(long first, long last, long D, Inputs& inputs, long M, bool alike, const Out& out, Own& own) const;
};

// y (T, N) = input(x) . weight + bias, and what becomes of it; or added to y. Parts of the weight are stacked by rows.
class Linear : public Op {
  public:
    Linear(int source, int target, long D, std::vector<Matrix> parts, std::vector<float> bias, Prologue prologue,
           Epilogue epilogue, bool add);
    void run(Run& run, int member) const override;
    void prepare(Run& run) const override;
    std::string describe() const override;
    long enough() const override;
    Cost cost() const override;

    // The same for M rows, row(m) each, to y (M, N). All members call it.
    template <class Row> void apply(Run& run, int member, long M, Row row, float* y) const {
        Inputs& inputs = make_inputs(run, member, M, row);
        if (epilogue_.kind == Epilogue::NONE)
            tasks(run, member, M, blocks_, [&](long begin, long end) {
                multiply(run, member, inputs, M, begin, end, y, N_);
            });
        else
            tasks(run, member, M, (N_ + 15) / 16, [&](long begin, long end) {
                finish(run, member, inputs, M, begin * 16, std::min(N_, end * 16), y);
            });
        run.team.barrier();
    }

    // Of the T rows of a step the largest output of each, capped unless that is 0, as the others of the member's tasks
    // come; they are kept nowhere else.
    void largest(Run& run, int member, float softcap) const;

    long N() const { return N_; }
    long D() const { return D_; }

  private:
    friend class FeedForward;
    static constexpr long ALONE = 2;  // rows whose input every member makes for itself, without waiting
    // A task's, of a weight: for so few rows gate and up are read by turns, which memory likes best in long runs; for
    // more, what stays in a core's own cache while they pass.
    static constexpr long ALONE_BYTES = 1 << 20, TASK_BYTES = 256 << 10;

    template <class Row> Inputs& make_inputs(Run& run, int member, long M, Row row) const {
        Own& own = run.own[member];
        bool alone = M <= ALONE;
        Inputs& inputs = alone ? own.inputs : run.inputs;
        if (alone) {
            for (long m = 0; m < M; m++) make_input(run, row(m), m, M, inputs, own);
        } else {
            for (long m; (m = run.team.next()) < M;) make_input(run, row(m), m, M, inputs, own);
            run.team.barrier();
        }
        return inputs;
    }

    // Calls each(begin, end) for all that the member takes of the blocks of 16 rows of the weight, or of the outputs.
    template <class Each> void tasks(Run& run, int member, long M, long blocks, Each each) const {
        long unit = M <= ALONE ? 1 : 2;  // blocks that are multiplied side by side
        long units = (blocks + unit - 1) / unit, tasks = std::min(units, wanted_tasks(M, run.team.size()));
        for (long task; (task = run.team.next(member, tasks)) >= 0;)
            each(units * task / tasks * unit, std::min(blocks, units * (task + 1) / tasks * unit));
    }
    long wanted_tasks(long M, long members) const {
        // As many for each member: one who has none left reads nothing.
        if (M <= ALONE) return members * std::max(4L, (bytes_ / members + ALONE_BYTES - 1) / ALONE_BYTES);
        // With several tokens the arithmetic counts, and many tasks even out who does how much of it.
        return std::max(bytes_ / TASK_BYTES, members == 1 ? 1 : 16 * members);
    }

    // Whether one of its parts takes M tokens' codes in words.
    bool in_words(const Run& run, long M) const;
    void make_input(const Run& run, const float* row, long m, long M, Inputs& inputs, Own& own) const;
    // Blocks [begin, end); output n of a token m comes to y[m * stride + n].
    void multiply(Run& run, int member, Inputs& inputs, long M, long begin, long end, float* y, long stride) const;
    // Outputs [n, upto) once they are finished, to y (M, N): while they are near.
    void finish(Run& run, int member, Inputs& inputs, long M, long n, long upto, float* y) const;
    // Products [n, upto) of a token m at n + m * stride behind what it returns; some of the numbers there are none.
    // They are in own floats, of which the first `taken` are in use.
    const float* products(Run& run, int member, Inputs& inputs, long M, long n, long upto, long taken,
                          long& stride) const;
    // The block of a product, and the first product of a block.
    long block_of(long product) const;
    long first_product(long block) const;

    int source_, target_;
    long D_, N_ = 0, blocks_ = 0, bytes_ = 0;
    std::vector<Matrix> parts_;
    std::vector<const int32_t*> orders_;
    std::vector<float> bias_;
    Prologue prologue_;
    Epilogue epilogue_;
    bool add_, words_ = false, hadamard_ = false;
};

// Two products one after the other, the second of what the first gives.
//
// Of some ten to thirty rows, threads that have rows of their own otherwise share these two, and nearly nothing of it
// comes from one thread to another: each makes the inputs of all rows, takes some of the inner outputs, and adds up
// what these give to all outputs; then the threads' sums are added up. (Between Megatron's processors, too,
// arXiv 1909.08053, each has columns of the first matrix and rows of the second.)
class FeedForward : public Op {
  public:
    FeedForward(std::shared_ptr<Linear> up, std::shared_ptr<Linear> down) : up_(std::move(up)), down_(std::move(down)) {}
    void run(Run& run, int member) const override;
    void prepare(Run& run) const override;
    std::string describe() const override { return up_->describe() + "; " + down_->describe(); }
    long enough() const override { return std::max(up_->enough(), down_->enough()); }
    Cost cost() const override { return {up_->cost().row + down_->cost().row}; }
    bool shared(const Step& step) const override;

  private:
    void run_shared(Run& run, int member) const;

    std::shared_ptr<Linear> up_, down_;
};

// x = norm(x); or, from another buffer, x += norm(buffer).
class Norm : public Op {
  public:
    Norm(int source, int target, long D, Prologue norm, bool add)
        : source_(source), target_(target), D_(D), norm_(std::move(norm)), add_(add) {}
    void run(Run& run, int member) const override;
    std::string describe() const override;

  private:
    int source_, target_;
    long D_;
    Prologue norm_;
    bool add_;
};

// Cosines and sines of every token, (T, dim / 2) each, for one rope.
class Angles : public Op {
  public:
    Angles(int rope, int cos, int sin, long dim) : rope_(rope), cos_(cos), sin_(sin), dim_(dim) {}
    void run(Run& run, int member) const override;
    std::string describe() const override;
    std::vector<int> kept() const override { return {cos_, sin_}; }

  private:
    int rope_, cos_, sin_;
    long dim_;
};

// Queries, keys and values of a step's tokens, (T, H + 2 K, E): the heads' norms, rotation, and the cache.
struct HeadsSpec {
    int buffer, cos, sin;  // cos < 0: no rotation
    long H, K, E, rope_dim;
    bool neighbours;
    std::vector<float> norm;  // (H + K, E), or none
    bool l2;                  // normed after rotation, without weights
    float eps, scale;
    float temperature_floor, temperature_scale;
    int pool;
    uint8_t* cache;  // (2 K, block_size, row bytes), and the next block `block_bytes` behind it
    long block_size, block_bytes;
    bool eight_bit;

    long row_bytes() const { return eight_bit ? E + 2 : 2 * E; }
};

class Heads : public Op {
  public:
    explicit Heads(HeadsSpec spec) : spec_(std::move(spec)) {}
    void run(Run& run, int member) const override;
    std::string describe() const override;

  private:
    HeadsSpec spec_;
};

// Attention of a step's queries over the cache.
class Attend : public Op {
  public:
    // `seen` says in words what queries see, where it is not all.
    Attend(HeadsSpec spec, int target, float softcap, std::string seen)
        : spec_(std::move(spec)), target_(target), softcap_(softcap), seen_(std::move(seen)) {}
    void run(Run& run, int member) const override;
    void prepare(Run& run) const override;
    std::string describe() const override;
    bool waits() const override { return true; }
    bool begins(const Step& step) const override;
    void prepare_begin(Run& run) const override;
    void begin(Run& run, int member) const override;
    std::vector<int> kept() const override { return {spec_.buffer}; }
    Cost cost() const override { return {0, 2 * spec_.H * spec_.E, spec_.pool}; }

  private:
    // A run of the slots that one token's queries of a head see, of how many.
    struct Look {
        Single one;
        long k, runs, from, count;
    };
    Look look(const Run& run, long first, long task, long& number) const;
    void single(Run& run, Own& own, long first, long task, long tasks, long& number) const;
    void join(Run& run, long first, long head) const;
    void longer(Run& run, Own& own, long task, long taken) const;
    void many(Run& run, Own& own, int part, long at, long size, long k) const;
    long tile(const Run& run) const;  // tokens that are one task of a longer part
    long upto(const Run& run, long first) const;
    SlotTiles tiles(const Run& run, int number, long k) const;
    const Pool& pool(const Run& run) const { return run.step.pools[spec_.pool]; }
    Slots slots(const Run& run, long number, long k) const;
    Scoring scoring(const Run& run, long k) const;

    HeadsSpec spec_;
    int target_;
    float softcap_;
    std::string seen_;
};

// Logits (T, V) of a linear layer, if there is a place for them: capped by softcap * tanh(logit / softcap) unless that
// is 0; and the largest of each row.
class Head : public Op {
  public:
    Head(std::shared_ptr<Linear> linear, float softcap) : linear_(std::move(linear)), softcap_(softcap) {}
    void run(Run& run, int member) const override;
    void prepare(Run& run) const override;
    std::string describe() const override;

  private:
    std::shared_ptr<Linear> linear_;
    float softcap_;
};

// A mixture of experts: x += the outputs of those that a router chooses for a token, and of one that sees all.
struct Expert {
    std::shared_ptr<Linear> up, down;
};

struct MixtureSpec {
    int normed, logits, inner, out;  // buffers (T, D), (T, experts), (T, widest up), (T, D)
    long D, top_k;
    Prologue norm;
    std::shared_ptr<Linear> router;
    std::vector<Expert> experts;
    bool sigmoid;      // of the chosen logits, for the input; else softmax over all, for the output
    bool renormalise;  // the chosen ones' probabilities
    Expert shared;     // or none
    std::shared_ptr<Linear> shared_gate;
};

class Mixture : public Op {
  public:
    explicit Mixture(MixtureSpec spec) : spec_(std::move(spec)) {}
    void run(Run& run, int member) const override;
    void prepare(Run& run) const override;
    std::string describe() const override;
    long enough() const override { return spec_.experts[0].up->enough() * (long)spec_.experts.size() / spec_.top_k; }
    Cost cost() const override;

  private:
    struct Choice {
        int32_t token;
        float share;
    };
    void choose(const float* logits, int32_t token, std::vector<std::vector<Choice>>& chosen) const;
    void expert(Run& run, int member, const Expert& expert, const std::vector<Choice>& tokens, bool on_input) const;

    MixtureSpec spec_;
};
