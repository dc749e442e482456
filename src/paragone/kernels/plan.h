// A decoder's step as a flat list of operations over buffers of floats, one row a token, that a team of threads works
// through from one call.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "table.h"
#include "team.h"

// Memory that begins with a line of the cache.
template <class T> struct Lines {
    using value_type = T;
    Lines() = default;
    template <class U> Lines(const Lines<U>&) {}
    T* allocate(size_t count) { return (T*)::operator new(count * sizeof(T), std::align_val_t(64)); }
    void deallocate(T* at, size_t) { ::operator delete(at, std::align_val_t(64)); }
    bool operator==(const Lines&) const { return true; }
};

template <class T> using Buffer = std::vector<T, Lines<T>>;

template <class T> void grow(Buffer<T>& room, size_t size) {
    if (room.size() < size) room.resize(size);
}

// What the queries of a layer see: all slots, the last `reach` of them, or those of their own chunk of `reach`.
enum class View { FULL, SLIDING, CHUNKED };

// Tokens of one sequence in a step: rows [row, row + count), from slot `start` on; its blocks in every pool. `whole`
// is how many the step has of it, where this is a piece of that part of the step, which is its number `number`; what
// comes out for its last `wanted` rows is asked for.
struct Part {
    int32_t row, count, start, whole, wanted;
    std::vector<std::vector<int32_t>> tables;
    int32_t number = 0;
};

// Tiles of the keys and values that parts of a step see in one layer, made once for all of their pieces.
struct AllTiles {
    struct Of {
        long first, upto, at;  // a part's tiles, and how many those of the parts before are
    };
    std::vector<std::vector<Of>> pools;  // of each part
    Buffer<Word> words;                  // of the layer at hand
};

// A step's side of one pool of blocks.
struct Pool {
    std::vector<int32_t> tables;  // (parts, width): the blocks of each part
    long width = 0;
    std::vector<int64_t> slots;          // of each token, the one that it goes to
    std::vector<int32_t> firsts, lasts;  // and those that it sees
    std::vector<int64_t> runs;  // of slots, that the single tokens before each see; behind the last, that all see
};

constexpr long RUN_SLOTS = 256;  // that one task looks at for a single token

// A rope's frequencies: those of row which[t] for token t, or of the only row.
struct Frequencies {
    const float *inverse, *scale;
    const int32_t* which;
};

// A token that attends by itself.
struct Single {
    int32_t row, part;
};

struct Step {
    long T;
    float* x;  // (T, D): embeddings, then final hidden states before their norm
    std::vector<int32_t> positions;
    std::vector<Frequencies> ropes;
    std::vector<Pool> pools;
    std::vector<Part> parts;
    bool deterministic;  // one way to compute a token, whatever is beside it
    std::vector<Single> singles;
    std::vector<int> longer;  // parts whose tokens attend together
    const float* bias;  // ALiBi's, (H, bias_stride), or none
    long bias_stride;
    long block_size;
    float* out;         // of a plan that has outputs of its own, where they are asked for
    int64_t* largest;   // and of each row the place of the largest
};

// Room for a run of rows as products take them.
class Inputs {
  public:
    // versions: of packed weights' inputs; code_words: whether those are wanted in words.
    void reserve(long rows, long D, long versions, bool code_words, bool words, bool hadamard);
    Quantised* quantised() { return quantised_.data(); }
    uint8_t* hadamard() { return hadamard_.data(); }
    // Of one version, as tiles take them: whole tiles of 16 of the M rows.
    Word* code_words(long version, long M, long D) {
        return code_words_.data() + version * ((M + 15) / 16 * 16) * ((D + 63) / 64 * 32);
    }
    Word* words() { return words_.data(); }

  private:
    Buffer<Quantised> quantised_;
    Buffer<uint8_t> hadamard_;
    Buffer<Word> code_words_, words_;
};

// The largest of a token's outputs, and which it is; -1 where one is not a number.
struct Largest {
    static constexpr int64_t NONE = INT64_MAX;
    float value = 0;
    int64_t index = NONE;

    void take(float other, int64_t its_index);
};

// What a member of the team has for itself.
struct Own {
    Inputs inputs;
    Buffer<float> row, floats, inner;
    Buffer<Word> panels;
    Buffer<uint8_t> room;
    std::vector<Largest> largest;
};

// What one thread has for itself, or several that work on the same rows share.
struct Room {
    Team alone;  // of the one thread
    std::vector<Buffer<float>> buffers;
    Inputs inputs;
    Buffer<float> partial;
    std::vector<Own> own;
};

// What the operations of a running step, or of a piece of one, share.
struct Run {
    static constexpr int X = 0, OUT = -1;  // the step's own

    Team& team;
    const Step& step;
    std::vector<float*> buffers;  // (T, width) each
    Inputs& inputs;
    Buffer<float>& partial;
    std::vector<Own>& own;  // one for each member, or more
    int members;            // at most
    AllTiles* tiles = nullptr;  // of the layer at hand, where they are made before it

    float* buffer(int index) const {
        return index == X ? step.x : index == OUT ? step.out : buffers[index];
    }
};

// Rows of a step that one thread works through, and what has to stay of them while it works on others.
struct Piece {
    Step step;
    std::vector<Buffer<float>> kept;
};

// What an operation costs for a row, and for every slot of a pool that the row sees: in products of two numbers, of
// bfloat16 or float32.
struct Cost {
    long row = 0, slot = 0;
    int pool = 0;
};

class Op {
  public:
    virtual ~Op() = default;
    virtual void run(Run& run, int member) const = 0;
    // Room that it needs for T tokens, made before the team starts.
    virtual void prepare(Run&) const {}
    virtual std::string describe() const = 0;
    // Whether threads share it that have rows of their own otherwise. Then it reads and writes x alone.
    virtual bool shared(const Step&) const { return false; }
    // What all threads do before any of them works on its own rows of it, if it wants that for a step.
    virtual bool begins(const Step&) const { return false; }
    virtual void prepare_begin(Run&) const {}
    virtual void begin(Run&, int) const {}
    // Whether it reads what others have put into the cache.
    virtual bool waits() const { return false; }
    // Buffers that were filled before an operation that waits and are read from there on.
    virtual std::vector<int> kept() const { return {}; }
    // How many rows each of two threads has at least where it pays that both read all of its weights.
    virtual long enough() const { return 1; }
    virtual Cost cost() const { return {}; }
};

class Plan {
  public:
    explicit Plan(const std::vector<long>& widths) : widths_(widths), kept_(widths.size()) {}

    // How the layers look back, for every pool of blocks: before the operations that do.
    void add_pool(View view, long reach) { views_.push_back({view, reach, 0}); }
    void add(std::shared_ptr<Op> op);
    void run(Step& step, int threads);
    std::vector<std::string> describe() const;
    // From now on the seconds of each operation are added up.
    void watch() { seconds_.assign(ops_.size(), 0.0); }
    std::vector<double> seconds() const { return seconds_; }

  private:
    void lay_out(Step& step) const;
    std::vector<Piece> pieces(const Step& step, int threads, bool& apart) const;
    Step wanted(const Step& step) const;
    void prepare(const Step& step, Room& room, int members, Piece* piece) const;
    Run view(const Step& step, Room& room, Team& team, int members, Piece* piece) const;
    void work(Run& run, int member, size_t first, size_t last);
    void run_pieces(Step& step, std::vector<Piece>& pieces, bool apart, int threads, size_t end);
    void run_shared(Step& step, int threads, size_t begin, size_t end, Piece* piece);

    std::mutex turn_;
    std::vector<double> seconds_;
    struct Reach {
        View view;
        long reach;
        long slot_cost;  // of all layers
        int32_t first_seen(int32_t at) const;
    };
    std::vector<Reach> views_;
    long row_cost_ = 0;
    std::vector<long> widths_;
    std::vector<std::shared_ptr<Op>> ops_;
    std::vector<bool> kept_;  // buffers, by number
    long enough_ = 1;
    size_t tail_ = 0;  // from this operation on no row reads what is made for another
    std::deque<Room> rooms_;
    AllTiles tiles_;
};
