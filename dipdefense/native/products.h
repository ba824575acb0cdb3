// Convolutions with the channels innermost, as products of tiles whose sums stay in registers.
#pragma once

#include <algorithm>
#include <memory>
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
constexpr int64_t CACHED = 6 * 1024;  // fp32 of a weight that are read again and again: they stay in the first cache
constexpr int64_t STRIP = 8;          // rows of pixels that a thread takes at once
constexpr int64_t NEAR = 128;         // pixels over which a weight's gradient is summed up before it is stored
constexpr int64_t CHUNK = 32;         // rows of pixels that one thread adds up for a weight's gradient

// Factors: an fp32, or a pair of bf16 whose two products are added to the same sum.
template <class T>
constexpr int64_t TERMS = sizeof(float) / sizeof(T);

inline float factor(const float* from) { return *from; }
inline Floats factors(const float* from) { return load(from); }
inline Floats plus(Floats sums, float left, Floats right) { return sums + left * right; }

inline uint32_t factor(const Bf16* from) {
    uint32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return pair;
}

inline Words factors(const Bf16* from) {
    Words pairs;
    std::memcpy(&pairs, from, sizeof pairs);
    return pairs;
}

inline Floats plus(Floats sums, uint32_t left, Words right) {
#ifdef __AVX512BF16__
    const auto pairs = (__m512bh)_mm512_set1_epi32(int(left));
    return (Floats)_mm512_dpbf16_ps((__m512)sums, pairs, bits_of<__m512bh>(right));
#else
    sums += bits_of<float>(left << 16) * bits_of<Floats>(right << 16);
    return sums + bits_of<float>(left >> 16 << 16) * bits_of<Floats>(right >> 16 << 16);
#endif
}

// Writes pairs of the numbers of two vectors.
inline void store_pairs(Bf16* to, Words first, Words second) {
    const Words pairs = first | second << 16;
    std::memcpy(to, &pairs, sizeof pairs);
}

// Where the next terms of a tile's sums begin.
template <class T>
struct Span {
    const T *left, *right;
};

// sums[m][n] (+)= Σ left[m · left_row + k · left_term] · right[k · right_term + n · TERMS] over the spans' factors.
template <class T, class Out, int M, int NV>
void tile(const Span<T>* spans, int64_t count, int64_t terms, int64_t left_row, int64_t left_term, int64_t right_term,
          Out* out, int64_t out_row, bool add) {
    Floats sums[M][NV];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < NV; ++v) sums[m][v] = add ? load(out + m * out_row + v * LANES) : Floats{};
    for (int64_t span = 0; span < count; ++span) {
        const T *left = spans[span].left, *right = spans[span].right;
        for (int64_t term = 0; term < terms; ++term, left += left_term, right += right_term) {
            decltype(factors(right)) own[NV];
            for (int v = 0; v < NV; ++v) own[v] = factors(right + v * LANES * TERMS<T>);
            for (int m = 0; m < M; ++m)
                for (int v = 0; v < NV; ++v) sums[m][v] = plus(sums[m][v], factor(left + m * left_row), own[v]);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < NV; ++v) store(out + m * out_row + v * LANES, sums[m][v]);
}

template <class T, class Out>
using Tile = void (*)(const Span<T>*, int64_t, int64_t, int64_t, int64_t, int64_t, Out*, int64_t, bool);

template <class T, class Out, int NV, int... M>
Tile<T, Out> tile_of(int64_t rows, std::integer_sequence<int, M...>) {
    static constexpr Tile<T, Out> tiles[] = {tile<T, Out, M + 1, NV>...};
    return tiles[rows - 1];
}

template <class T, class Out>
Tile<T, Out> tile_of(int64_t rows, int64_t block) {
    return block == NARROW ? tile_of<T, Out, NARROW / LANES>(rows, std::make_integer_sequence<int, NARROW_TILE>())
                           : tile_of<T, Out, WIDE / LANES>(rows, std::make_integer_sequence<int, WIDE_TILE>());
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

// A weight: (outputs / block, taps, inputs, block), or in bf16 (outputs / block, taps, inputs / 2, block, 2); outputs are
// a multiple of 16.
struct Weight {
    int64_t taps, inputs, outputs;
    int64_t block = outputs % WIDE ? NARROW : WIDE, blocks = outputs / block, size = taps * inputs * outputs;
    int64_t at(int64_t which, int64_t tap) const { return (which * taps + tap) * inputs * block; }
};

// The same with inputs for whole factors. The last one may be a zero, which meets the next pixel's first number, or the
// rounding of the tensor's size behind its last pixel: both are finite.
template <class T>
Weight aligned(const Weight& of) {
    return {of.taps, (of.inputs + TERMS<T> - 1) / TERMS<T> * TERMS<T>, of.outputs};
}

// Taps that are summed up before a sum is stored: all in bf16, which would round what is stored in between.
template <class T>
int64_t together(const Weight& of) {
    return TERMS<T> > 1 ? of.taps : std::max<int64_t>(1, std::min<int64_t>(of.taps, CACHED / (of.inputs * of.block)));
}

template <class T>
struct Factors {
    const T* values;
    Weight of;
};

// The weight as factors: itself, or written to ``to``.
inline Factors<float> as_factors(const float* weight, const Weight& of, float*, int) { return {weight, of}; }
inline Factors<Bf16> as_factors(const float* weight, const Weight& of, Bf16* to, int threads) {
    const Weight own = aligned<Bf16>(of);
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t which = 0; which < of.blocks; ++which)
        for (int64_t tap = 0; tap < of.taps; ++tap)
            for (int64_t in = 0; in < of.inputs; in += 2)
                for (int64_t at = 0; at < of.block; at += LANES) {
                    const float* const from = weight + of.at(which, tap) + in * of.block + at;
                    const Floats second = in + 1 < of.inputs ? load(from + of.block) : Floats{};
                    store_pairs(to + own.at(which, tap) + in * of.block + 2 * at, rounded(load(from)),
                                rounded(second));
                }
    return {to, own};
}

inline void set(float* to, float value) { *to = value; }
inline void set(Bf16* to, float value) { store(to, all(value), 1); }

// The transpose of LANES² numbers as factors.
inline void transpose_factors(const float* from, int64_t from_row, float* to, int64_t to_row) {
    transpose(from, from_row, to, to_row);
}
inline void transpose_factors(const float* from, int64_t from_row, Bf16* to, int64_t to_row) {
    float rows[LANES * LANES];
    transpose(from, from_row, rows, LANES);
    for (int64_t row = 0; row < LANES; row += 2)
        store_pairs(to + row * to_row, rounded(load(rows + row * LANES)), rounded(load(rows + (row + 1) * LANES)));
}

// The weight as factors, written to ``to``, with inputs and outputs exchanged.
template <class T>
Factors<T> exchange(const float* from, const Weight& of, T* to, const Weight& exchanged, int threads) {
    const Weight turned = aligned<T>(exchanged);
    // Only where no input is padding: what follows the inputs is another parameter, or another image's.
    const bool even = of.inputs == turned.outputs && turned.inputs % LANES == 0;
    const int64_t step = even ? LANES : 1;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t tap = 0; tap < of.taps; ++tap)
        for (int64_t out = 0; out < turned.inputs; out += step) {
            const float* const columns = from + of.at(out / of.block, tap) + out % of.block;
            for (int64_t in = 0; in < turned.outputs; in += step) {
                T* const rows = to + turned.at(in / turned.block, tap) + out / TERMS<T> * TERMS<T> * turned.block +
                                in % turned.block * TERMS<T> + out % TERMS<T>;
                if (even)
                    transpose_factors(columns + in * of.block, of.block, rows, turned.block);
                else
                    set(rows, in < of.inputs ? columns[in * of.block] : 0);
            }
        }
    return {to, turned};
}

// out = Σ over taps of x · weight. With ``apart`` each tap has its own place in ``out``, and nothing is summed.
template <class T, class Out>
void multiply(const T* x, const Grid& from, const Factors<T>& weight, Out* out, const Grid& to, int64_t rows,
              int64_t columns, bool apart, bool add, int threads) {
    const Weight& of = weight.of;
    const int64_t strips = (rows + STRIP - 1) / STRIP, most = apart ? 1 : together<T>(of);
    for_parts(strips, of.blocks, threads, [&](int64_t strip, int64_t which) {
        const int64_t last = std::min(rows, (strip + 1) * STRIP);
        for (int64_t first = 0; first < of.taps; first += most) {
            const int64_t count = std::min(most, of.taps - first);
            for (int64_t row = strip * STRIP; row < last; ++row)
                for_tiles(columns, of.block, [&](int64_t begin, int64_t end) {
                    Span<T> spans[MOST_TAPS];
                    for (int64_t tap = first; tap < first + count; ++tap)
                        spans[tap - first] = {x + row * from.row + begin * from.pixel + from.taps[tap],
                                              weight.values + of.at(which, tap)};
                    tile_of<T, Out>(end - begin, of.block)(
                        spans, count, of.inputs / TERMS<T>, from.pixel, TERMS<T>, of.block * TERMS<T>,
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

// Rows of pixels whose sum is the gradient of a weight, as factors: the numbers themselves, or pairs of two pixels.
template <class T>
class Lines;

template <>
class Lines<float> {
  public:
    const int64_t count, term;

    Lines(int64_t, int64_t columns, int64_t, const Grid& grid) : count(columns), term(grid.pixel), row(grid.row) {}
    void see(const float* first, int64_t) { from = first; }
    const float* at(int64_t line) const { return from + line * row; }

  private:
    const int64_t row;
    const float* from = nullptr;
};

template <>
class Lines<Bf16> {
  public:
    const int64_t count, term;

    // Keeps ``most`` lines, for what one tap sees of a row another one sees of the next.
    Lines(int64_t most, int64_t columns, int64_t channels, const Grid& grid)
        : count((columns + 1) / 2), term((channels + LANES - 1) / LANES * LANES * 2), columns(columns), grid(grid),
          kept(most), pairs(new Bf16[most * count * term]) {}  // a vector would write zeros first
    void see(const Bf16* first, int64_t lines) {
        seen.clear();
        for (int64_t line = 0; line < lines; ++line) {
            const Bf16* const from = first + line * grid.row;
            const auto same = [&](const Kept& own) { return own.from == from; };
            const auto oldest = [](const Kept& a, const Kept& b) { return a.used < b.used; };
            const auto found = std::find_if(kept.begin(), kept.end(), same);
            const auto place = found == kept.end() ? std::min_element(kept.begin(), kept.end(), oldest) : found;
            Bf16* const to = &pairs[(place - kept.begin()) * count * term];
            if (found == kept.end()) pair_up(from, to);
            *place = {from, ++uses};
            seen.push_back(to);
        }
    }
    const Bf16* at(int64_t line) const { return seen[line]; }

  private:
    struct Kept {
        const Bf16* from = nullptr;
        int64_t used = 0;
    };
    const int64_t columns;
    const Grid& grid;
    std::vector<Kept> kept;
    std::vector<const Bf16*> seen;
    const std::unique_ptr<Bf16[]> pairs;
    int64_t uses = 0;

    void pair_up(const Bf16* pixel, Bf16* to) const {
        const int64_t whole = columns / 2, next = grid.pixel, size = term;
        for (int64_t pair = 0; pair < whole; ++pair, pixel += 2 * next, to += size)
            for (int64_t at = 0; at < size; at += 2 * LANES)
                store_pairs(to + at, bits(pixel + at / 2), bits(pixel + next + at / 2));
        for (int64_t at = 0; whole < count && at < size; at += 2 * LANES)
            store_pairs(to + at, bits(pixel + at / 2), Words{});
    }
    static Words bits(const Bf16* of) { return bits_of<Words>(load(of)) >> 16; }
};

// The gradient of a weight: Σ over pixels of x · grad for every tap. ``partial`` is room for rows / CHUNK weights.
template <class T>
void correlate(const T* x, const Grid& from, const T* grad, const Grid& of_grad, float* to, const Weight& of,
               int64_t rows, int64_t columns, bool add, float* partial, int threads) {
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
    const int64_t step = std::min({rows, CHUNK, std::max<int64_t>(1, NEAR / columns)});
    const int64_t groups = groups_of(chunks, of.blocks, threads);
    const Chunks gradient{of, to, partial, chunks};
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int64_t group = 0; group < groups; ++group) {
            float* const sums = gradient.sums(chunk);
            const int64_t last = std::min(rows, (chunk + 1) * CHUNK);
            Lines<T> left(rows > 1 ? step * of.taps : step, columns, of.inputs, from);
            Lines<T> right(step, columns, of.outputs, of_grad);
            for (int64_t begin = chunk * CHUNK; begin < last; begin += step)
                for (int64_t tap = 0; tap < of.taps; ++tap) {
                    const int64_t count = std::min(step, last - begin);
                    left.see(x + begin * from.row + from.taps[tap], count);
                    right.see(grad + begin * of_grad.row + of_grad.taps[tap], count);
                    for (int64_t which = of.blocks * group / groups; which < of.blocks * (group + 1) / groups; ++which)
                        for_tiles(of.inputs, of.block, [&](int64_t first, int64_t end) {
                            Span<T> spans[CHUNK];
                            for (int64_t i = 0; i < count; ++i)
                                spans[i] = {left.at(i) + first * TERMS<T>, right.at(i) + which * of.block * TERMS<T>};
                            tile_of<T, float>(end - first, of.block)(
                                spans, count, left.count, TERMS<T>, left.term, right.term,
                                sums + of.at(which, tap) + first * of.block, of.block, add || begin > chunk * CHUNK);
                        });
                }
        }
    gradient.add_up(threads);
}

// The gradient of a padded tensor under a 3×3 convolution of this stride, by the transposed weight. ``grad`` has two
// pixels of zeros before and after each row's ``columns``, and pixels of ``deep`` numbers; ``out`` is (padded_rows,
// padded_columns, turned.outputs).
template <class T>
void spread(const T* grad, int64_t rows, int64_t columns, int64_t deep, const Factors<T>& weight, int stride, T* out,
            int64_t padded_rows, int64_t padded_columns, int threads) {
    const Weight& turned = weight.of;
    const int64_t most = together<T>(turned);
    const int64_t inputs = turned.inputs, outputs = turned.outputs, line = (columns + 4) * deep;
    for_parts((padded_rows + STRIP - 1) / STRIP, turned.blocks, threads, [&](int64_t strip, int64_t which) {
        const int64_t last = std::min(padded_rows, (strip + 1) * STRIP);
        for (int64_t row = strip * STRIP; row < last; ++row)
            for (int64_t column = 0; column < padded_columns; ++column)
                for (int64_t at = which * turned.block; at < (which + 1) * turned.block; at += LANES)
                    store(out + (row * padded_columns + column) * outputs + at, Floats{});
        for (int64_t first = 0; first < turned.taps; first += most)
            for (int64_t row = strip * STRIP; row < last; ++row)
                for (int64_t parity = 0; parity < stride; ++parity) {
                    Span<T> spans[MOST_TAPS];
                    int64_t count = 0;
                    for (int64_t tap = first; tap < std::min(first + most, turned.taps); ++tap) {
                        const int64_t up = row - tap / 3, shift = parity - tap % 3;
                        if (up < 0 || up % stride || up / stride >= rows || shift % stride) continue;
                        spans[count++] = {grad + up / stride * line + (2 + shift / stride) * deep,
                                          weight.values + turned.at(which, tap)};
                    }
                    if (!count) continue;
                    T* const to = out + (row * padded_columns + parity) * outputs + which * turned.block;
                    const int64_t pixels = (padded_columns - parity + stride - 1) / stride;
                    for_tiles(pixels, turned.block, [&](int64_t begin, int64_t end) {
                        Span<T> moved[MOST_TAPS];
                        for (int64_t i = 0; i < count; ++i)
                            moved[i] = {spans[i].left + begin * deep, spans[i].right};
                        tile_of<T, T>(end - begin, turned.block)(
                            moved, count, inputs / TERMS<T>, deep, TERMS<T>, turned.block * TERMS<T>,
                            to + begin * stride * outputs, stride * outputs, true);
                    });
                }
    });
}

}  // namespace
