// The binding of what brings weights into the layouts that kernels multiply, and back: rows in parallel.
#include <algorithm>
#include <cstring>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "compress.h"
#include "file_rows.h"
#include "gguf.h"
#include "hadamard.h"
#include "module.h"
#include "ops.h"
#include "pack.h"

namespace nb = nanobind;

namespace {

// Levels: sixteen of -128 to 127, or none.
Layout layout(int bits, bool has_minimum, bool fine, float unit, const std::vector<int>& levels) {
    Layout layout{bits, has_minimum, fine, unit, !levels.empty()};
    for (size_t i = 0; i < levels.size() && i < 16; i++) layout.levels[i] = (uint8_t)(levels[i] + 128);
    return layout;
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
                                   at<Outlier>(outliers) + at<int64_t>(lists)[panel], row % compressed::ROWS, D,
                                   at<uint16_t>(to) + task * D);
        }
    });
}

// Sixteen rows at a time of rows order[0], order[1], ... of a matrix of float32 or bfloat16, which need not be aligned,
// each in float32, as row first, first + 1, ... of another: what `make` gives each thread is called with both.
template <class Work>
void in_float32(long D, long first, long count, uintptr_t rows, uintptr_t order, bool bfloat16, int threads,
                Work make) {
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
        std::vector<uint8_t> codes(hadamard::runs_of(D) * hadamard::RUN);
        return [&, codes = std::move(codes)](const float* from, long row) mutable {
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
    for (size_t i = 0; i < rows.size(); i++) {
        if (i + 1 < rows.size()) packing.fetch(rows[i + 1]);
        packing.get(rows[i], at<float>(to) + i * D);
    }
}

}  // namespace

void add_weights(nb::module_& m) {
    auto released = nb::call_guard<nb::gil_scoped_release>();
    nb::class_<Layout>(m, "Layout");
    m.def("layout", &layout);
    m.def("pack", &pack, released);
    m.def("round_rows", &round_rows, released);
    m.def("hadamard_rows", &hadamard_rows, released);
    m.def("unpack", &unpack);
    m.def("read_rows", [](int descriptor, long offset, long D, const std::vector<long>& ids, uintptr_t to) {
        return read_rows(descriptor, offset, D, ids, at<float>(to));
    }, released);
    m.def("compress", &compress);
    m.def("expand", &expand, released);
    m.def("repacks", [](const std::string& name) { return gguf_type(name) != nullptr; });
    m.def("repack", &repack, released);
}
