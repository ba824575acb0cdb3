// Normalisation of an upsampled tensor, applied to the low-resolution one.
#pragma once

#include <array>

#include "vectors.h"

namespace {

// One term of a sum over lines: which, and its weight.
struct Term {
    int64_t line;
    float weight;
};

// The two of ``low`` lines that an upsampled one is a sum of, in ascending order; the same one twice at either end.
inline std::array<Term, 2> sources(int64_t at, int64_t low) {
    const int64_t centre = at / 2, other = at % 2 ? centre + 1 : centre - 1;
    const Term near{centre, 0.75f}, far{other < 0 ? 0 : other < low ? other : low - 1, 0.25f};
    if (far.line < centre) return {far, near};
    return {near, far};
}

// Upsampling ×2 along an axis, without aligned corners, cropped to ``size``: its Gram matrix is tridiagonal, and its
// mean a weighted one. Three rows: the diagonal, the entries beside it (from each pixel to the next), and the weights
// of the mean.
inline std::vector<float> upsampling_table(int64_t size) {
    const int64_t low = (size + 1) / 2;
    std::vector<float> table(3 * low);
    for (int64_t at = 0; at < size; ++at) {
        const auto [first, second] = sources(at, low);
        table[first.line] += first.weight * first.weight;
        table[second.line] += second.weight * second.weight;
        if (first.line == second.line)
            table[first.line] += 2 * first.weight * second.weight;
        else
            table[low + first.line] += first.weight * second.weight;
        for (const Term& term : {first, second}) table[2 * low + term.line] += term.weight / float(size);
    }
    return table;
}

// Maps of rows · columns pixels of ``inner`` channels: N·C maps of one channel, or one image's map of C.
struct Maps {
    const float *vertical, *horizontal;  // an upsampling_table each
    int64_t maps, rows, columns, inner;
    double pixels;  // of the upsampled tensor
    int64_t length = columns * inner, size = rows * length, padded = (length + LANES - 1) / LANES * LANES;
};

// The rows of a map, less a number a channel, and their Gram products.
template <class T>
class Rows {
  public:
    std::vector<float> weights, values, product;

    explicit Rows(const Maps& maps)
        : weights(maps.padded), values(maps.padded), product(maps.padded), maps(maps), own(maps.padded),
          right(maps.padded), left(maps.padded), centre(maps.padded), line(maps.padded + 2 * maps.inner) {
        const float* table = maps.horizontal;
        for (int64_t column = 0, columns = maps.columns; column < columns; ++column) {
            const float next = column + 1 < columns ? table[columns + column] : 0;
            const float previous = column ? table[columns + column - 1] : 0;
            for (int64_t at = column * maps.inner; at < (column + 1) * maps.inner; ++at) {
                own[at] = table[column], right[at] = next, left[at] = previous;
                weights[at] = table[2 * columns + column];
            }
        }
    }

    // One number a channel, the same for all pixels of a row.
    void along(const float* channels, std::vector<float>& row) const {
        for (int64_t at = 0; at < maps.length; at += maps.inner)
            std::memcpy(&row[at], channels, maps.inner * sizeof(float));
    }

    void centre_at(const float* channels) { along(channels, centre); }

    void read(const T* map, int64_t row) {
        const float* table = maps.vertical;
        const bool first = row == 0, last = row == maps.rows - 1;
        const float diagonal = table[row], below = last ? 0 : table[maps.rows + row];
        const float above = first ? 0 : table[maps.rows + row - 1];
        const T* from = map + row * maps.length;
        // Beside the first and the last row is the row itself, without weight.
        const T *next = last ? from : from + maps.length, *previous = first ? from : from - maps.length;
        float *mixed = line.data() + maps.inner, *plain = values.data();
        for (int64_t at = 0; at < maps.length; at += LANES) {
            const int64_t count = maps.length - at;
            const Floats c = load(&centre[at]), x = load(from + at, count) - c;
            store(plain + at, x, count);
            const Floats others = below * (load(next + at, count) - c) + above * (load(previous + at, count) - c);
            store(mixed + at, diagonal * x + others, count);
        }
        for (int64_t at = 0; at < maps.length; ++at)
            product[at] = own[at] * mixed[at] + right[at] * mixed[at + maps.inner] + left[at] * mixed[at - maps.inner];
    }

  private:
    const Maps& maps;
    std::vector<float> own, right, left, centre, line;
};

// Calls visit(rows, map, row, sums) for every row of every map. ``sums`` are two rows of numbers to add to. They are
// added up over each map by channel and returned, two per channel; with ``wanted`` false nothing is returned.
template <class T, class Visit>
std::vector<double> for_rows(const Maps& maps, const float* centres, bool wanted, int threads, Visit visit) {
    const int64_t blocks = (maps.rows + ROWS - 1) / ROWS, each = 2 * maps.inner;
    std::vector<double> partial(wanted ? maps.maps * blocks * each : 0), totals(wanted ? maps.maps * each : 0);
#pragma omp parallel num_threads(threads)
    {
        Rows<T> rows(maps);
        std::vector<float> sums(2 * maps.padded);
#pragma omp for collapse(2)
        for (int64_t map = 0; map < maps.maps; ++map)
            for (int64_t block = 0; block < blocks; ++block) {
                sums.assign(sums.size(), 0);
                rows.centre_at(centres + map * maps.inner);
                const int64_t end = (block + 1) * ROWS < maps.rows ? (block + 1) * ROWS : maps.rows;
                for (int64_t row = block * ROWS; row < end; ++row) visit(rows, map, row, sums.data());
                for (int64_t at = 0; wanted && at < maps.length; at += maps.inner)
                    for (int64_t i = 0; i < each; ++i)
                        partial[(map * blocks + block) * each + i] += sums[i % 2 * maps.padded + at + i / 2];
            }
    }
    for (int64_t map = 0; wanted && map < maps.maps; ++map)
        for (int64_t block = 0; block < blocks; ++block)
            for (int64_t i = 0; i < each; ++i) totals[map * each + i] += partial[(map * blocks + block) * each + i];
    return totals;
}

template <class T>
void normalise_upsampled(const T* x, T* y, const float* scale, double* statistics, const Maps& maps, double eps,
                         int threads) {
    const int64_t channels = maps.maps * maps.inner;
    std::vector<float> origin(channels), factor(channels);
    for (int64_t channel = 0; channel < channels; ++channel)
        origin[channel] = load(x + channel / maps.inner * maps.size + channel % maps.inner, 1)[0];
    const auto sums = for_rows<T>(maps, origin.data(), true, threads,
                                  [&](Rows<T>& rows, int64_t map, int64_t row, float* means) {
        rows.read(x + map * maps.size, row);
        const float weight = maps.vertical[2 * maps.rows + row];
        float* const squares = means + maps.padded;
        for (int64_t at = 0; at < maps.length; ++at) {
            means[at] += weight * rows.weights[at] * rows.values[at];
            squares[at] += rows.values[at] * rows.product[at];
        }
    });
    for (int64_t channel = 0; channel < channels; ++channel) {
        const double mean = sums[2 * channel], variance = sums[2 * channel + 1] / maps.pixels - mean * mean;
        statistics[2 * channel] = origin[channel] + mean;
        statistics[2 * channel + 1] = 1 / std::sqrt((variance < 0 ? 0 : variance) + eps);
        factor[channel] = float(statistics[2 * channel + 1] * scale[channel]);
    }
    for_rows<T>(maps, origin.data(), false, threads, [&](Rows<T>& rows, int64_t map, int64_t row, float*) {
        rows.along(&factor[map * maps.inner], rows.product);
        const int64_t begin = map * maps.size + row * maps.length;
        for (int64_t at = 0; at < maps.length; at += LANES) {
            const int64_t count = maps.length - at;
            store(y + begin + at, load(x + begin + at, count) * load(&rows.product[at]), count);
        }
    });
}

// The variance's derivative is 2 · (Gram product of x − mean) / pixels.
template <class T>
void normalise_upsampled_backward(const T* x, const T* grad, T* grad_x, const float* scale, const double* statistics,
                                  float* grad_scale, const Maps& maps, int threads) {
    const int64_t channels = maps.maps * maps.inner;
    std::vector<float> mean(channels), factor(channels), pull(channels);
    for (int64_t channel = 0; channel < channels; ++channel) mean[channel] = float(statistics[2 * channel]);
    const auto sums = for_rows<T>(maps, mean.data(), true, threads,
                                  [&](Rows<T>&, int64_t map, int64_t row, float* products) {
        const int64_t begin = map * maps.size + row * maps.length;
        for (int64_t at = 0; at < maps.length; at += LANES) {
            const int64_t count = maps.length - at;
            store(products + at, load(products + at) + load(x + begin + at, count) * load(grad + begin + at, count));
        }
    });
    for (int64_t channel = 0; channel < channels; ++channel) {
        const double inverse = statistics[2 * channel + 1], product = sums[2 * channel];
        grad_scale[channel] = float(product * inverse);
        factor[channel] = float(inverse * scale[channel]);
        pull[channel] = float(-product * scale[channel] * inverse * inverse * inverse / maps.pixels);
    }
    for_rows<T>(maps, mean.data(), false, threads, [&](Rows<T>& rows, int64_t map, int64_t row, float*) {
        rows.read(x + map * maps.size, row);
        const int64_t begin = map * maps.size + row * maps.length;
        // The centred values and the weights are not needed any more; the factors take their places.
        rows.along(&factor[map * maps.inner], rows.values);
        rows.along(&pull[map * maps.inner], rows.weights);
        for (int64_t at = 0; at < maps.length; at += LANES) {
            const int64_t count = maps.length - at;
            const Floats pulled = load(&rows.weights[at]) * load(&rows.product[at]);
            store(grad_x + begin + at, load(grad + begin + at, count) * load(&rows.values[at]) + pulled, count);
        }
    });
}

}  // namespace
