// Convolutions with the channels innermost, as products of tiles whose sums stay in registers.
#pragma once

#include <algorithm>
#include <utility>

#include "vectors.h"

namespace {

// Outputs beside each other in a block of a weight, and pixels or input channels of a tile: as many sums as there are
// registers for.
constexpr int NARROW = 16, WIDE = 32;
#if defined __AVX512F__
constexpr int NARROW_TILE = 14, WIDE_TILE = 12;
#elif defined __AVX__ || defined __aarch64__
constexpr int NARROW_TILE = 6, WIDE_TILE = 3;
#else
constexpr int NARROW_TILE = 3, WIDE_TILE = 1;
#endif
constexpr int MOST_TAPS = 9;
constexpr int64_t CACHED = 6 * 1024;  // floats of a weight that are read again and again: they stay in the first cache
constexpr int64_t STRIP = 8;          // rows of pixels that a thread takes at once
constexpr int64_t NEAR = 128;         // pixels over which a weight's gradient is summed up before it is stored
constexpr int64_t CHUNK = 32;         // rows of pixels that one thread adds up for a weight's gradient

// Where the next terms of a tile's sums begin.
struct Span {
    const float *left, *right;
};

// sums[m][n] (+)= Σ left[m · left_row + k · left_term] · right[k · right_term + n] over the spans' terms.
template <int M, int NV>
void tile(const Span* spans, int64_t count, int64_t terms, int64_t left_row, int64_t left_term, int64_t right_term,
          float* out, int64_t out_row, bool add) {
    Floats sums[M][NV];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < NV; ++v) sums[m][v] = add ? load(out + m * out_row + v * LANES) : Floats{};
    for (int64_t span = 0; span < count; ++span) {
        const float *left = spans[span].left, *right = spans[span].right;
        for (int64_t term = 0; term < terms; ++term, left += left_term, right += right_term) {
            Floats factors[NV];
            for (int v = 0; v < NV; ++v) factors[v] = load(right + v * LANES);
            for (int m = 0; m < M; ++m)
                for (int v = 0; v < NV; ++v) sums[m][v] += left[m * left_row] * factors[v];
        }
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < NV; ++v) store(out + m * out_row + v * LANES, sums[m][v]);
}

using Tile = void (*)(const Span*, int64_t, int64_t, int64_t, int64_t, int64_t, float*, int64_t, bool);

template <int NV, int... M>
Tile tile_of(int64_t rows, std::integer_sequence<int, M...>) {
    static constexpr Tile tiles[] = {tile<M + 1, NV>...};
    return tiles[rows - 1];
}

inline Tile tile_of(int64_t rows, int64_t block) {
    return block == NARROW ? tile_of<NARROW / LANES>(rows, std::make_integer_sequence<int, NARROW_TILE>())
                           : tile_of<WIDE / LANES>(rows, std::make_integer_sequence<int, WIDE_TILE>());
}

// Calls visit(begin, end) for tiles of about the same size.
template <class Visit>
inline void for_tiles(int64_t size, int64_t block, Visit visit) {
    const int64_t most = block == NARROW ? NARROW_TILE : WIDE_TILE, tiles = (size + most - 1) / most;
    for (int64_t at = 0; at < tiles; ++at) visit(size * at / tiles, size * (at + 1) / tiles);
}

// Parts of the blocks for threads of their own, where there are fewer strips than threads.
inline int64_t groups_of(int64_t strips, int64_t blocks, int threads) {
    return strips >= threads ? 1 : std::min(blocks, (threads + strips - 1) / strips);
}

// Calls visit(strip, block) for all of them; a strip's blocks one after another, while it is in the cache.
template <class Visit>
inline void for_parts(int64_t strips, int64_t blocks, int threads, Visit visit) {
    const int64_t groups = groups_of(strips, blocks, threads);
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t strip = 0; strip < strips; ++strip)
        for (int64_t group = 0; group < groups; ++group)
            for (int64_t block = blocks * group / groups; block < blocks * (group + 1) / groups; ++block)
                visit(strip, block);
}

// How a tensor of pixels is read or written: the distances of rows and pixels, and where each tap begins.
struct Grid {
    int64_t row, pixel;
    int64_t taps[MOST_TAPS] = {};
};

// A weight: (outputs / block, taps, inputs, block); outputs are a multiple of 16.
struct Weight {
    int64_t taps, inputs, outputs;
    int64_t block = outputs % WIDE ? NARROW : WIDE, blocks = outputs / block, size = taps * inputs * outputs;
    int64_t at(int64_t which, int64_t tap) const { return (which * taps + tap) * inputs * block; }
    int64_t cached = std::max<int64_t>(1, std::min<int64_t>(taps, CACHED / (inputs * block)));  // taps at once
};

// The weight with inputs and outputs exchanged; ``outputs`` of it are read, without the padding.
inline void exchange(const float* from, const Weight& of, int64_t outputs, float* to, const Weight& turned,
                     int threads) {
    // Only where no input is padding: what follows the inputs is another parameter, or another image's.
    const bool even = of.inputs == turned.outputs && outputs % LANES == 0;
    const int64_t step = even ? LANES : 1;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t tap = 0; tap < of.taps; ++tap)
        for (int64_t out = 0; out < outputs; out += step) {
            const float* const columns = from + of.at(out / of.block, tap) + out % of.block;
            for (int64_t in = 0; in < turned.outputs; in += step) {
                float* const rows = to + turned.at(in / turned.block, tap) + out * turned.block + in % turned.block;
                if (even)
                    transpose(columns + in * of.block, of.block, rows, turned.block);
                else
                    *rows = in < of.inputs ? columns[in * of.block] : 0;
            }
        }
}

// out = Σ over taps of x · weight. With ``apart`` each tap has its own place in ``out``, and nothing is summed.
inline void multiply(const float* x, const Grid& from, const float* weight, const Weight& of, float* out,
                     const Grid& to, int64_t rows, int64_t columns, bool apart, bool add, int threads) {
    const int64_t strips = (rows + STRIP - 1) / STRIP, together = apart ? 1 : of.cached;
    for_parts(strips, of.blocks, threads, [&](int64_t strip, int64_t which) {
        const int64_t last = std::min(rows, (strip + 1) * STRIP);
        for (int64_t first = 0; first < of.taps; first += together) {
            const int64_t count = std::min(together, of.taps - first);
            for (int64_t row = strip * STRIP; row < last; ++row)
                for_tiles(columns, of.block, [&](int64_t begin, int64_t end) {
                    Span spans[MOST_TAPS];
                    for (int64_t tap = first; tap < first + count; ++tap)
                        spans[tap - first] = {x + row * from.row + begin * from.pixel + from.taps[tap],
                                              weight + of.at(which, tap)};
                    tile_of(end - begin, of.block)(
                        spans, count, of.inputs, from.pixel, 1, of.block,
                        out + row * to.row + begin * to.pixel + to.taps[first] + which * of.block, to.pixel,
                        add || (!apart && first));
                });
        }
    });
}

// A weight's gradient in chunks, each summed up by one thread: in ``partial``, or at once where there is only one.
struct Chunks {
    const Weight& of;
    float *to, *partial;
    int64_t count;

    float* sums(int64_t chunk) const { return count > 1 ? partial + chunk * of.size : to; }
    void add_up(int threads) const {
        if (count == 1) return;
#pragma omp parallel for num_threads(threads)
        for (int64_t at = 0; at < of.size; at += LANES) {
            Floats total{};
            for (int64_t chunk = 0; chunk < count; ++chunk) total += load(partial + chunk * of.size + at);
            store(to + at, total);
        }
    }
};

// The gradient of a weight: Σ over pixels of x · grad for every tap. ``partial`` is room for rows / CHUNK weights.
inline void correlate(const float* x, const Grid& from, const float* grad, const Grid& of_grad, float* to,
                      const Weight& of, int64_t rows, int64_t columns, bool add, float* partial, int threads) {
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK, step = std::min(std::max<int64_t>(1, NEAR / columns), CHUNK);
    const int64_t groups = groups_of(chunks, of.blocks, threads);
    const Chunks gradient{of, to, partial, chunks};
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int64_t group = 0; group < groups; ++group) {
            float* const sums = gradient.sums(chunk);
            const int64_t last = std::min(rows, (chunk + 1) * CHUNK);
            for (int64_t begin = chunk * CHUNK; begin < last; begin += step)
                for (int64_t which = of.blocks * group / groups; which < of.blocks * (group + 1) / groups; ++which)
                    for (int64_t tap = 0; tap < of.taps; ++tap)
                        for_tiles(of.inputs, of.block, [&](int64_t first, int64_t end) {
                            Span spans[CHUNK];
                            const int64_t count = std::min(step, last - begin);
                            for (int64_t i = 0; i < count; ++i)
                                spans[i] = {x + (begin + i) * from.row + from.taps[tap] + first,
                                            grad + (begin + i) * of_grad.row + of_grad.taps[tap] + which * of.block};
                            tile_of(end - first, of.block)(spans, count, columns, 1, from.pixel, of_grad.pixel,
                                                             sums + of.at(which, tap) + first * of.block, of.block,
                                                             add || begin > chunk * CHUNK);
                        });
        }
    gradient.add_up(threads);
}

// The gradient of a padded tensor under a 3×3 convolution of this stride, by the transposed weight. ``grad`` has two
// pixels of zeros before and after each row's ``columns``, and pixels of ``deep`` numbers; ``out`` is (padded_rows,
// padded_columns, turned.outputs).
inline void spread(const float* grad, int64_t rows, int64_t columns, int64_t deep, const float* weight,
                   const Weight& turned, int stride, float* out, int64_t padded_rows, int64_t padded_columns,
                   int threads) {
    const int64_t inputs = turned.inputs, outputs = turned.outputs, line = (columns + 4) * deep;
    for_parts((padded_rows + STRIP - 1) / STRIP, turned.blocks, threads, [&](int64_t strip, int64_t which) {
        const int64_t last = std::min(padded_rows, (strip + 1) * STRIP);
        for (int64_t row = strip * STRIP; row < last; ++row)
            for (int64_t column = 0; column < padded_columns; ++column)
                for (int64_t at = which * turned.block; at < (which + 1) * turned.block; at += LANES)
                    store(out + (row * padded_columns + column) * outputs + at, Floats{});
        for (int64_t first = 0; first < turned.taps; first += turned.cached)
            for (int64_t row = strip * STRIP; row < last; ++row)
                for (int64_t parity = 0; parity < stride; ++parity) {
                    Span spans[MOST_TAPS];
                    int64_t count = 0;
                    for (int64_t tap = first; tap < std::min(first + turned.cached, turned.taps); ++tap) {
                        const int64_t up = row - tap / 3, shift = parity - tap % 3;
                        if (up < 0 || up % stride || up / stride >= rows || shift % stride) continue;
                        spans[count++] = {grad + up / stride * line + (2 + shift / stride) * deep,
                                          weight + turned.at(which, tap)};
                    }
                    if (!count) continue;
                    float* const to = out + (row * padded_columns + parity) * outputs + which * turned.block;
                    const int64_t pixels = (padded_columns - parity + stride - 1) / stride;
                    for_tiles(pixels, turned.block, [&](int64_t begin, int64_t end) {
                        Span moved[MOST_TAPS];
                        for (int64_t i = 0; i < count; ++i)
                            moved[i] = {spans[i].left + begin * deep, spans[i].right};
                        tile_of(end - begin, turned.block)(moved, count, inputs, deep, 1, turned.block,
                                                             to + begin * stride * outputs, stride * outputs, true);
                    });
                }
    });
}

}  // namespace
