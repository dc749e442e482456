// The binding. Addresses come from Python; callers check shapes, types and layouts, and nothing is checked here.
#include <algorithm>
#include <cstring>

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "compress.h"
#include "gguf.h"
#include "hadamard.h"
#include "ops.h"
#include "pack.h"
#include "probe.h"
#include "sample.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T> T* at(uintptr_t address) { return (T*)address; }

std::vector<float> floats(uintptr_t address, long count) {
    const float* from = at<float>(address);
    return from ? std::vector<float>(from, from + count) : std::vector<float>();
}

// Levels: sixteen of -128 to 127, or none.
Layout layout(int bits, bool has_minimum, bool fine, float unit, const std::vector<int>& levels) {
    Layout layout{bits, has_minimum, fine, unit, !levels.empty()};
    for (size_t i = 0; i < levels.size() && i < 16; i++) layout.levels[i] = (uint8_t)(levels[i] + 128);
    return layout;
}

Matrix packed(const Layout& layout, uintptr_t panels, long rows, long D, uintptr_t order) {
    Matrix matrix{Matrix::PACKED, rows, {layout, at<uint8_t>(panels), rows, D, 0}, {}, {}, at<int32_t>(order)};
    matrix.packed.stride = matrix.panel_bytes(D);
    return matrix;
}

Matrix in_hadamard(uintptr_t panels, long rows, long D) {
    return {Matrix::HADAMARD, rows, {}, {at<uint8_t>(panels), rows, D}, {}};
}

Matrix in_bfloat16(uintptr_t panels, uintptr_t lists, uintptr_t outliers, long rows, long D) {
    return {Matrix::COMPRESSED, rows, {}, {}, {at<uint8_t>(panels), at<int64_t>(lists), at<Outlier>(outliers), rows, D}};
}

Prologue norm(const std::string& kind, uintptr_t weight, uintptr_t bias, float eps, long D) {
    return {kind == "rms" ? Prologue::RMS_NORM : Prologue::LAYER_NORM, floats(weight, D), floats(bias, D), eps};
}

Activation activation(const std::string& name) {
    return name == "silu" ? SILU : name == "gelu" ? GELU : GELU_TANH;
}

Epilogue activated(const std::string& name, bool gated) {
    return {gated ? Epilogue::GATED : Epilogue::ACTIVATED, activation(name)};
}

View view(const std::string& name) {
    return name == "sliding" ? View::SLIDING : name == "chunked" ? View::CHUNKED : View::FULL;
}

using Linears = std::tuple<std::shared_ptr<Linear>, std::shared_ptr<Linear>>;  // up, down
using Rope = std::tuple<uintptr_t, uintptr_t, uintptr_t>;          // inverse frequencies, scales, which
// Start, count, how many rows are wanted, tables.
using Text = std::tuple<int32_t, int32_t, int32_t, std::vector<std::vector<int32_t>>>;

// One step of T tokens; addresses as plan.h has them.
void run(Plan& plan, int threads, long T, uintptr_t x, const std::vector<Rope>& ropes,
         const std::vector<Text>& parts, long block_size, bool deterministic, uintptr_t bias, long bias_stride,
         uintptr_t out) {
    Step step{};
    step.T = T;
    step.x = at<float>(x);
    step.block_size = block_size;
    for (auto [inverse, scale, which] : ropes)
        step.ropes.push_back({at<float>(inverse), at<float>(scale), at<int32_t>(which)});
    int32_t row = 0;
    for (auto& [start, count, wanted, tables] : parts) {
        step.parts.push_back({row, count, start, count, wanted, tables});
        row += count;
    }
    step.deterministic = deterministic;
    step.bias = at<float>(bias);
    step.bias_stride = bias_stride;
    step.out = at<float>(out);
    plan.run(step, threads);
}

// Outputs of T rows of x, unless `out` is 0, and the largest of each.
void run_head(Plan& plan, int threads, long T, uintptr_t x, bool deterministic, uintptr_t out, uintptr_t largest) {
    Step step{};
    step.deterministic = deterministic;
    step.T = T;
    step.x = at<float>(x);
    step.out = at<float>(out);
    step.largest = at<int64_t>(largest);
    plan.run(step, threads);
}

void pack(const Layout& layout, uintptr_t panels, long D, long first, long count, uintptr_t codes, uintptr_t scales,
          uintptr_t minima, int threads) {
    Packing packing{layout, at<uint8_t>(panels), D};
    long groups = layout.fine ? (D + 15) / 16 : (D + 31) / 32;
    Team& team = Team::shared();
    team.run(threads, [&](int) {
        for (long row; (row = team.next() * 16) < count;)
            packing.put(first + row, std::min(16L, count - row), at<uint8_t>(codes) + row * D,
                        at<float>(scales) + row * groups,
                        layout.has_minimum ? at<float>(minima) + row * groups : nullptr);
    });
}

// Rows order[0], order[1], ... of a matrix in bfloat16 become panels `first` and on, whose lists begin with outlier
// `listed` of the matrix; returns their bytes. Rows need not be aligned.
nb::bytes compress(uintptr_t panels, uintptr_t begins, long D, long first, long count, uintptr_t rows, uintptr_t order,
                   long listed, int threads) {
    std::vector<std::vector<Outlier>> lists((count + compressed::ROWS - 1) / compressed::ROWS);
    std::vector<Outlier> all;
    {
        nb::gil_scoped_release released;
        Team& team = Team::shared();
        team.run(threads, [&](int) {
            for (long task; (task = team.next()) < (long)lists.size();) {
                const uint8_t* from[compressed::ROWS];
                long begin = task * compressed::ROWS, here = std::min(compressed::ROWS, count - begin);
                for (long r = 0; r < here; r++) from[r] = at<uint8_t>(rows) + at<int64_t>(order)[begin + r] * D * 2;
                compressed::compress_panel(from, here, D,
                                           at<uint8_t>(panels) + (first + task) * compressed::panel_bytes(D),
                                           lists[task]);
            }
        });
        for (long task = 0; task < (long)lists.size(); task++) {
            at<int64_t>(begins)[first + task] = listed + (int64_t)all.size();
            all.insert(all.end(), lists[task].begin(), lists[task].end());
        }
    }
    return nb::bytes((const char*)all.data(), all.size() * sizeof(Outlier));
}

// Rows order[0], order[1], ... as they were, one after the other.
void expand(uintptr_t panels, uintptr_t lists, uintptr_t outliers, long D, uintptr_t order, long count, uintptr_t to,
            int threads) {
    Team& team = Team::shared();
    team.run(threads, [&](int) {
        for (long task; (task = team.next()) < count;) {
            long row = at<int64_t>(order)[task], panel = row / compressed::ROWS;
            compressed::expand_row(at<uint8_t>(panels) + panel * compressed::panel_bytes(D),
                                   at<Outlier>(outliers) + at<int64_t>(lists)[panel], row % compressed::ROWS, D, at<uint16_t>(to) + task * D);
        }
    });
}

// Sixteen rows at a time of rows order[0], order[1], ... of a matrix of float32 or bfloat16, which need not be aligned,
// each in float32, as row first, first + 1, ... of another: what `make` gives each thread is called with both.
template <class Work>
void in_float32(long D, long first, long count, uintptr_t rows, uintptr_t order, bool bfloat16, int threads, Work make) {
    Team& team = Team::shared();
    team.run(threads, [&](int) {
        std::vector<float> row(D);
        auto work = make();
        for (long task; (task = team.next()) * 16 < count;)
            for (long r = task * 16; r < std::min(count, task * 16 + 16); r++) {
                const uint8_t* x = at<uint8_t>(rows) + at<int64_t>(order)[r] * D * (bfloat16 ? 2 : 4);
                if (!bfloat16) std::memcpy(row.data(), x, D * sizeof(float));
                for (long d = 0; bfloat16 && d < D; d++) {
                    uint16_t half;
                    std::memcpy(&half, x + 2 * d, sizeof half);
                    uint32_t word = (uint32_t)half << 16;
                    std::memcpy(&row[d], &word, sizeof word);
                }
                work(row.data(), first + r);
            }
    });
}

// Such rows in four bits.
void round_rows(const Layout& layout, uintptr_t panels, long D, long first, long count, uintptr_t rows, uintptr_t order,
                bool bfloat16, int threads) {
    Packing packing{layout, at<uint8_t>(panels), D};
    in_float32(D, first, count, rows, order, bfloat16, threads, [&] {
        return [&, scales = std::vector<float>(D / 32 + 1), minima = std::vector<float>(D / 32 + 1),
                codes = std::vector<uint8_t>(D)](const float* from, long row) mutable {
            best.round_row(from, D, layout.unit, codes.data(), scales.data(), minima.data());
            packing.put(row, 1, codes.data(), scales.data(), minima.data());
        };
    });
}

// Such rows in eight bits, with a scale for each.
void hadamard_rows(uintptr_t panels, long D, long first, long count, uintptr_t rows, uintptr_t order, bool bfloat16,
                   int threads) {
    in_float32(D, first, count, rows, order, bfloat16, threads, [&] {
        return [&, codes = std::vector<uint8_t>(hadamard::runs_of(D) * hadamard::RUN)](const float* from, long row) mutable {
            float scale = best.hadamard_row(from, D, codes.data());
            hadamard::put_row(at<uint8_t>(panels), row, D, codes.data(), scale);
        };
    });
}

// Rows order[0], order[1], ... of a tensor of one of GGUF's types become rows `first` and on.
void repack(const Layout& layout, uintptr_t panels, long D, long first, long count, const std::string& name,
            uintptr_t book, uintptr_t raw, uintptr_t order, int threads) {
    const GgufType& type = *gguf_type(name);
    Packing packing{layout, at<uint8_t>(panels), D};
    packing.unit = 1.0f;  // scales are stored as the file has them
    uint8_t numbers[256] = {};  // of levels
    for (int i = 0; i < 16; i++) numbers[layout.levels[i]] = (uint8_t)i;
    long blocks = D / type.inputs;
    Team& team = Team::shared();
    team.run(threads, [&](int) {
        std::vector<uint8_t> codes(D);
        std::vector<float> scales(blocks * type.groups), minima(blocks * type.groups);
        // Sixteen rows a task, which share their lines of the cache.
        for (long task; (task = team.next()) * 16 < count;)
            for (long row = task * 16; row < std::min(count, task * 16 + 16); row++) {
                const uint8_t* from = at<uint8_t>(raw) + at<int64_t>(order)[row] * blocks * type.bytes;
                for (long b = 0; b < blocks; b++)
                    type.unpack(from + b * type.bytes, at<int8_t>(book), codes.data() + b * type.inputs,
                                scales.data() + b * type.groups, minima.data() + b * type.groups);
                if (layout.has_levels)
                    for (uint8_t& code : codes) code = numbers[code];
                packing.put(first + row, 1, codes.data(), scales.data(), layout.has_minimum ? minima.data() : nullptr);
            }
    });
}

// Rows of a packed weight in float32, one after the other.
void unpack(const Layout& layout, uintptr_t panels, long D, const std::vector<long>& rows, uintptr_t to) {
    Packing packing{layout, at<uint8_t>(panels), D};
    for (size_t i = 0; i < rows.size(); i++) packing.get(rows[i], at<float>(to) + i * D);
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // a model that lives as long as the process is not a leak
    m.attr("level") = best.name;
    nb::list names;
    for (const Kernels* level : levels) names.append(level->name);
    m.attr("levels") = names;
    nb::list refused;
    for (const Kernels* level : refused_levels()) refused.append(level->name);
    m.attr("refused_levels") = refused;
    m.attr("X") = +Run::X;
    m.attr("OUT") = +Run::OUT;
    m.attr("pairs") = best.pairs;
    m.attr("words_from") = best.packed_words.least_tokens;  // tokens whose codes are multiplied in words
    auto released = nb::call_guard<nb::gil_scoped_release>();
    nb::class_<Layout>(m, "Layout");
    m.def("layout", &layout);
    m.def("pack", &pack, released);
    m.def("round_rows", &round_rows, released);
    m.def("hadamard_rows", &hadamard_rows, released);
    m.def("unpack", &unpack);
    m.def("compress", &compress);
    m.def("expand", &expand, released);
    m.def("repacks", [](const std::string& name) { return gguf_type(name) != nullptr; });
    m.def("repack", &repack, released);
    m.def("draw", [](uintptr_t logits, long V, float temperature, long top_k, float top_p, float min_p, double point) {
        return draw(at<float>(logits), V, {temperature, top_k, top_p, min_p}, point);
    }, released);
    m.def("pin", [](const std::vector<int>& processors) {
        for (int processor : processors)
            if (processor < 0 || processor >= 1024) throw nb::value_error("no such processor");
        Team::shared().pin(processors);
    }, released);
    m.def("multiply_rate", &multiply_rate, "bits"_a, "threads"_a, "whole_rows"_a = false, released);
    m.def("read_rate", [](uintptr_t from, long bytes, int threads) {
        return read_rate(at<uint8_t>(from), bytes, threads);
    }, released);
    nb::class_<Matrix>(m, "Matrix");
    m.def("packed", &packed, "layout"_a, "panels"_a, "rows"_a, "D"_a, "order"_a = 0);
    m.def("in_hadamard", &in_hadamard);
    m.def("in_bfloat16", &in_bfloat16);
    nb::class_<Prologue>(m, "Prologue").def(nb::init<>());
    nb::class_<Epilogue>(m, "Epilogue").def(nb::init<>());
    m.def("norm", &norm);
    m.def("activated", &activated);
    nb::class_<Op>(m, "Op").def("describe", &Op::describe);
    nb::class_<Linear, Op>(m, "Linear")
        .def("__init__", [](Linear* self, int source, int target, long D, std::vector<Matrix> parts, uintptr_t bias,
                            Prologue prologue, Epilogue epilogue, bool add) {
            long N = 0;
            for (const Matrix& part : parts) N += part.rows;
            new (self) Linear(source, target, D, std::move(parts), floats(bias, N), prologue, epilogue, add);
        });
    nb::class_<FeedForward, Op>(m, "FeedForward")
        .def(nb::init<std::shared_ptr<Linear>, std::shared_ptr<Linear>>());
    nb::class_<Norm, Op>(m, "Norm").def(nb::init<int, int, long, Prologue, bool>());
    nb::class_<Angles, Op>(m, "Angles").def(nb::init<int, int, int, long>());
    nb::class_<HeadsSpec>(m, "HeadsSpec")
        .def("__init__", [](HeadsSpec* self, int buffer, int cos, int sin, std::tuple<long, long, long> sizes,
                            long rope_dim, bool neighbours, uintptr_t norm, bool l2, float eps, float scale,
                            float floor, float temperature, int pool, uintptr_t cache, long block_size,
                            bool eight_bit) {
            auto [H, K, E] = sizes;
            new (self) HeadsSpec{buffer, cos, sin, H, K, E, rope_dim, neighbours, floats(norm, (H + K) * E), l2, eps,
                                 scale, floor, temperature, pool, at<uint8_t>(cache), block_size, eight_bit};
        }, "buffer"_a, "cos"_a, "sin"_a, "sizes"_a, "rope_dim"_a, "neighbours"_a, "norm"_a, "l2"_a, "eps"_a, "scale"_a,
           "temperature_floor"_a, "temperature_scale"_a, "pool"_a, "cache"_a, "block_size"_a, "eight_bit"_a);
    nb::class_<Heads, Op>(m, "Heads").def(nb::init<HeadsSpec>());
    nb::class_<Attend, Op>(m, "Attend").def(nb::init<HeadsSpec, int, float, std::string>());
    nb::class_<Head, Op>(m, "Head").def(nb::init<std::shared_ptr<Linear>, float>());
    nb::class_<Mixture, Op>(m, "Mixture")
        .def("__init__", [](Mixture* self, std::tuple<int, int, int, int> buffers, long D, long top_k, Prologue norm,
                            std::shared_ptr<Linear> router, const std::vector<Linears>& experts, bool sigmoid,
                            bool renormalise, const std::vector<Linears>& shared,
                            const std::vector<std::shared_ptr<Linear>>& shared_gate) {
            auto [normed, logits, inner, out] = buffers;
            MixtureSpec spec{normed, logits, inner, out, D, top_k, std::move(norm), router, {}, sigmoid, renormalise,
                             {}, shared_gate.empty() ? nullptr : shared_gate[0]};
            for (auto& [up, down] : experts) spec.experts.push_back({up, down});
            if (!shared.empty()) spec.shared = {std::get<0>(shared[0]), std::get<1>(shared[0])};
            new (self) Mixture(std::move(spec));
        }, "buffers"_a, "D"_a, "top_k"_a, "norm"_a, "router"_a, "experts"_a, "sigmoid"_a, "renormalise"_a, "shared"_a,
           "shared_gate"_a);
    nb::class_<Plan>(m, "Plan")
        .def(nb::init<std::vector<long>>())
        .def("add_pool", [](Plan& plan, const std::string& kind, long reach) { plan.add_pool(view(kind), reach); })
        .def("add", &Plan::add)
        .def("describe", &Plan::describe)
        .def("watch", &Plan::watch)
        .def("seconds", &Plan::seconds)
        .def("run", &run, "threads"_a, "T"_a, "x"_a, "ropes"_a, "parts"_a, "block_size"_a, "deterministic"_a,
              "bias"_a, "bias_stride"_a, "out"_a = 0, released)
        .def("run_head", &run_head, released);
}
