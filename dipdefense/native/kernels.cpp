// Kernels for what lies between the convolutions on a CPU. dipdefense/native/build.py compiles them at run time.
//
// Two layouts of (N, C, H, W): N·C planes of H·W pixels, or, of one image alone, H·W pixels of C channels. Values are
// fp32 or bf16; every sum is fp32 within a block and double beyond it. Blocks have a fixed size and are added up in
// order, and no sum reaches over images: results depend neither on the number of threads nor on the batch.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 16;
constexpr int64_t BLOCK = 1024;  // values of a plane that are summed up in fp32
constexpr int64_t PIXELS = 256;  // pixels likewise, where channels are innermost

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint64_t Longs __attribute__((vector_size(8 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
struct Bf16 {
    uint16_t bits;
};

template <class To, class From>
inline To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same number of bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline Floats all(float value) { return Floats{} + value; }

inline Floats load(const float* from) {
    Floats values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline Floats load(const Bf16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return bits_of<Floats>(__builtin_convertvector(halves, Words) << 16);
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline void store(Bf16* to, Floats values) {
    const Words bits = bits_of<Words>(values);
    const Words even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN must not be rounded up to infinity or beyond.
    const Words whole = values == values ? even : Words{} + 0x7fc0;
    const Halves halves = __builtin_convertvector(whole, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

// The first ``count`` lanes; the others are zero.
template <class T>
inline Floats load(const T* from, int64_t count) {
    if (count >= LANES) return load(from);
    T padded[LANES] = {};
    std::memcpy(padded, from, count * sizeof(T));
    return load(padded);
}

template <class T>
inline void store(T* to, Floats values, int64_t count) {
    if (count >= LANES) return store(to, values);
    T padded[LANES];
    store(padded, values);
    std::memcpy(to, padded, count * sizeof(T));
}

inline float sum(Floats values) {
    float lanes[LANES];
    std::memcpy(lanes, &values, sizeof lanes);
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

inline Floats root(Floats values) {
    float lanes[LANES];
    std::memcpy(lanes, &values, sizeof lanes);
    for (float& lane : lanes) lane = std::sqrt(lane);
    std::memcpy(&values, lanes, sizeof lanes);
    return values;
}

// Of positive normal numbers: the polynomial of Cephes' logf.
inline Floats logarithm(Floats x) {
    const Words bits = bits_of<Words>(x);
    Ints exponent = bits_of<Ints>(bits >> 23) - 126;
    Floats m = bits_of<Floats>((bits & 0x7fffff) | 0x3f000000);
    const Ints small = m < 0.70710678f;
    exponent += small;
    m = (small ? m + m : m) - 1.0f;
    Floats p = all(7.0376836292e-2f);
    for (float c : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                    2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f})
        p = p * m + c;
    return m + (m * m * m * p - 0.5f * m * m) + 0.69314718f * __builtin_convertvector(exponent, Floats);
}

// The polynomial of Cephes' expf.
inline Floats exponential(Floats x) {
    x = x > 88.0f ? all(88.0f) : x < -87.0f ? all(-87.0f) : x;
    const Ints n = __builtin_convertvector(x * 1.44269504f + (x > 0.0f ? all(0.5f) : all(-0.5f)), Ints);
    const Floats whole = __builtin_convertvector(n, Floats);
    const Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = p * r + c;
    return (p * r * r + r + 1.0f) * bits_of<Floats>((n + 127) << 23);
}

// ---- fresh noise -----------------------------------------------------------------------------------------------

// Philox 4×32-10 (Salmon et al. 2011) of 16 counters.
inline void philox(uint64_t key, Words counter, uint32_t iteration, Words out[4]) {
    Words a = counter, b = Words{} + iteration, c = Words{}, d = Words{};
    uint32_t low = uint32_t(key), high = uint32_t(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const Longs first = __builtin_convertvector(a, Longs) * 0xD2511F53u;
        const Longs second = __builtin_convertvector(c, Longs) * 0xCD9E8D57u;
        a = __builtin_convertvector(second >> 32, Words) ^ b ^ low;
        c = __builtin_convertvector(first >> 32, Words) ^ d ^ high;
        b = __builtin_convertvector(second, Words);
        d = __builtin_convertvector(first, Words);
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

// Box and Muller's pair of normal numbers of two words.
inline void normal(Words radius, Words angle, Floats& first, Floats& second) {
    const Floats uniform = __builtin_convertvector(radius >> 8, Floats) * 0x1p-24f + 0x1p-25f;
    const Floats length = root(-2.0f * logarithm(uniform));
    // The angle's first two bits are the quadrant, the others the way from its middle, in radians.
    const Words quadrant = angle >> 30;
    const Floats turn = __builtin_convertvector(bits_of<Ints>(angle << 2) >> 2, Floats) * (1.57079633f * 0x1p-30f);
    const Floats square = turn * turn;
    Floats sine = all(2.7557319e-6f), cosine = all(2.4801587e-5f);
    for (float c : {-1.9841270e-4f, 8.3333333e-3f, -1.6666667e-1f, 1.0f}) sine = sine * square + c;
    for (float c : {-1.3888889e-3f, 4.1666667e-2f, -0.5f, 1.0f}) cosine = cosine * square + c;
    sine *= turn;
    const Ints swap = bits_of<Ints>((quadrant & 1) == 1);
    const Floats x = swap ? sine : cosine, y = swap ? cosine : sine;
    const Words sign_x = ((quadrant + 1) & 2) << 30, sign_y = (quadrant & 2) << 30;
    first = length * bits_of<Floats>(bits_of<Words>(x) ^ sign_x);
    second = length * bits_of<Floats>(bits_of<Words>(y) ^ sign_y);
}

template <class T>
void perturb(const float* fixed, T* out, const int64_t* seeds, int64_t images, int64_t size, int64_t iteration,
             float deviation, int threads) {
    constexpr int64_t EACH = 4 * LANES;
    const int64_t chunks = (size + EACH - 1) / EACH;
    Words lane{};
    for (int i = 0; i < LANES; ++i) lane[i] = i;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t image = 0; image < images; ++image)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            Words words[4];
            Floats values[4];
            philox(uint64_t(seeds[image]), lane + uint32_t(chunk * LANES), uint32_t(iteration), words);
            normal(words[0], words[1], values[0], values[1]);
            normal(words[2], words[3], values[2], values[3]);
            for (int part = 0; part < 4; ++part) {
                const int64_t at = chunk * EACH + part * LANES, count = size - at;
                if (count <= 0) break;
                const int64_t place = image * size + at;
                store(out + place, load(fixed + place, count) + deviation * values[part], count);
            }
        }
}

// ---- normalisation and LeakyReLU ---------------------------------------------------------------------------------

// y = factor · x + offset before the activation, a channel's.
struct Affine {
    float factor, offset;
};

inline Floats activated(Floats x, Floats factor, Floats offset, float slope) {
    const Floats y = x * factor + offset;
    return y > 0.0f ? y : y * slope;
}

inline Affine affine(double mean, double inverse, float scale, float shift) {
    const double factor = inverse * scale;
    return {float(factor), float(shift - mean * factor)};
}

// The moments of ``count`` values from the sums of x − origin and of its squares; written as mean and 1/deviation.
inline void moments(double first, double second, double origin, int64_t count, double eps, double* statistics) {
    const double mean = first / count, variance = second / count - mean * mean;
    statistics[0] = origin + mean;
    // ``<`` rather than a maximum, which would hide a NaN.
    statistics[1] = 1 / std::sqrt((variance < 0 ? 0 : variance) + eps);
}

template <class T>
void normalise_planes(const T* x, T* y, const float* scale, const float* shift, double* statistics, int64_t planes,
                      int64_t size, double eps, float slope, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t plane = 0; plane < planes; ++plane) {
        const T* from = x + plane * size;
        const float origin = load(from, 1)[0];
        double first = 0, second = 0;
        for (int64_t begin = 0; begin < size; begin += BLOCK) {
            const int64_t end = begin + BLOCK < size ? begin + BLOCK : size;
            Floats sums{}, squares{};
            int64_t at = begin;
            for (; at + LANES <= end; at += LANES) {
                const Floats centred = load(from + at) - origin;
                sums += centred;
                squares += centred * centred;
            }
            float rest = 0, rest_squares = 0;
            for (; at < end; ++at) {
                const float centred = load(from + at, 1)[0] - origin;
                rest += centred;
                rest_squares += centred * centred;
            }
            first += double(sum(sums)) + rest;
            second += double(sum(squares)) + rest_squares;
        }
        double* own = statistics + 2 * plane;
        moments(first, second, origin, size, eps, own);
        const Affine a = affine(own[0], own[1], scale[plane], shift ? shift[plane] : 0);
        T* to = y + plane * size;
        int64_t at = 0;
        for (; at + LANES <= size; at += LANES)
            store(to + at, activated(load(from + at), all(a.factor), all(a.offset), slope));
        if (at < size)
            store(to + at, activated(load(from + at, size - at), all(a.factor), all(a.offset), slope), size - at);
    }
}

// Gradients of x, scale and shift, given that of y: with x̂ the normalised x and g the gradient before the activation,
// that of x is factor · (g − mean(g) − x̂ · mean(g x̂)).
template <class T>
void normalise_planes_backward(const T* x, const T* grad, T* grad_x, const float* scale, const float* shift,
                               const double* statistics, float* grad_scale, float* grad_shift, int64_t planes,
                               int64_t size, float slope, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t plane = 0; plane < planes; ++plane) {
        const T *from = x + plane * size, *pull = grad + plane * size;
        T* to = grad_x + plane * size;
        const double mean = statistics[2 * plane], inverse = statistics[2 * plane + 1];
        const Affine a = affine(mean, inverse, scale[plane], shift ? shift[plane] : 0);
        const Affine hat = affine(mean, inverse, 1, 0);
        const auto before = [&](int64_t at, int64_t count, Floats& normal) {
            const Floats values = load(from + at, count), g = load(pull + at, count);
            normal = values * hat.factor + hat.offset;
            return values * a.factor + a.offset > 0.0f ? g : g * slope;
        };
        double first = 0, second = 0;
        for (int64_t begin = 0; begin < size; begin += BLOCK) {
            const int64_t end = begin + BLOCK < size ? begin + BLOCK : size;
            Floats sums{}, products{}, normal;
            int64_t at = begin;
            for (; at + LANES <= end; at += LANES) {
                const Floats g = before(at, LANES, normal);
                sums += g;
                products += g * normal;
            }
            if (at < end) {
                const Floats g = before(at, end - at, normal);  // zero beyond the end
                sums += g;
                products += g * normal;
            }
            first += sum(sums);
            second += sum(products);
        }
        grad_scale[plane] = float(second);
        if (grad_shift) grad_shift[plane] = float(first);
        const float mean_g = float(first / size), mean_product = float(second / size);
        for (int64_t at = 0; at < size; at += LANES) {
            Floats normal;
            const Floats g = before(at, size - at, normal);
            store(to + at, a.factor * (g - mean_g - normal * mean_product), size - at);
        }
    }
}

// Sums over the pixels of an image: ``add`` sums up a block's for 16 channels; written for each channel in double.
template <class Add>
void sum_pixels(int64_t pixels, int64_t channels, double* first, double* second, int threads, Add add) {
    const int64_t blocks = (pixels + PIXELS - 1) / PIXELS, padded = (channels + LANES - 1) / LANES * LANES;
    std::vector<float> partial(2 * blocks * padded);
#pragma omp parallel for num_threads(threads)
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t begin = block * PIXELS, end = begin + PIXELS < pixels ? begin + PIXELS : pixels;
        for (int64_t channel = 0; channel < channels; channel += LANES) {
            Floats sums[2] = {};
            add(channel, begin, end, sums);
            for (int which = 0; which < 2; ++which)
                store(&partial[(2 * block + which) * padded + channel], sums[which]);
        }
    }
    for (int64_t channel = 0; channel < channels; ++channel) {
        first[channel] = second[channel] = 0;
        for (int64_t block = 0; block < blocks; ++block) {
            first[channel] += partial[2 * block * padded + channel];
            second[channel] += partial[(2 * block + 1) * padded + channel];
        }
    }
}

// ``apply`` writes the pixels from begin to end for 16 channels.
template <class Apply>
void for_pixels(int64_t pixels, int64_t channels, int threads, Apply apply) {
#pragma omp parallel for num_threads(threads)
    for (int64_t begin = 0; begin < pixels; begin += PIXELS)
        for (int64_t channel = 0; channel < channels; channel += LANES)
            apply(channel, begin, begin + PIXELS < pixels ? begin + PIXELS : pixels);
}

template <class T>
void normalise_pixels(const T* x, T* y, const float* scale, const float* shift, double* statistics, int64_t channels,
                      int64_t pixels, double eps, float slope, int threads) {
    std::vector<double> first(channels), second(channels);
    sum_pixels(pixels, channels, first.data(), second.data(), threads,
               [=](int64_t channel, int64_t begin, int64_t end, Floats* sums) {
                   const int64_t count = channels - channel;
                   const Floats origin = load(x + channel, count);
                   Floats first{}, second{};
                   for (int64_t pixel = begin; pixel < end; ++pixel) {
                       const Floats centred = load(x + pixel * channels + channel, count) - origin;
                       first += centred;
                       second += centred * centred;
                   }
                   sums[0] = first, sums[1] = second;
               });
    const int64_t padded = (channels + LANES - 1) / LANES * LANES;
    std::vector<float> factor(padded), offset(padded);
    for (int64_t channel = 0; channel < channels; ++channel) {
        double* own = statistics + 2 * channel;
        moments(first[channel], second[channel], load(x + channel, 1)[0], pixels, eps, own);
        const Affine a = affine(own[0], own[1], scale[channel], shift ? shift[channel] : 0);
        factor[channel] = a.factor, offset[channel] = a.offset;
    }
    for_pixels(pixels, channels, threads, [&](int64_t channel, int64_t begin, int64_t end) {
        const int64_t count = channels - channel;
        const Floats f = load(&factor[channel]), o = load(&offset[channel]);
        for (int64_t pixel = begin; pixel < end; ++pixel) {
            const int64_t at = pixel * channels + channel;
            store(y + at, activated(load(x + at, count), f, o, slope), count);
        }
    });
}

template <class T>
void normalise_pixels_backward(const T* x, const T* grad, T* grad_x, const float* scale, const float* shift,
                               const double* statistics, float* grad_scale, float* grad_shift, int64_t channels,
                               int64_t pixels, float slope, int threads) {
    const int64_t padded = (channels + LANES - 1) / LANES * LANES;
    // Rows: the affine map's two numbers, those without scale and shift, and the two means.
    std::vector<float> table(6 * padded);
    float* const rows = table.data();
    for (int64_t channel = 0; channel < channels; ++channel) {
        const double mean = statistics[2 * channel], inverse = statistics[2 * channel + 1];
        const Affine a = affine(mean, inverse, scale[channel], shift ? shift[channel] : 0);
        const Affine hat = affine(mean, inverse, 1, 0);
        const float values[] = {a.factor, a.offset, hat.factor, hat.offset};
        for (int row = 0; row < 4; ++row) rows[row * padded + channel] = values[row];
    }
    const auto row = [=](int which, int64_t channel) { return load(rows + which * padded + channel); };
    std::vector<double> first(channels), second(channels);
    sum_pixels(pixels, channels, first.data(), second.data(), threads,
               [=](int64_t channel, int64_t begin, int64_t end, Floats* sums) {
                   const int64_t count = channels - channel;
                   const Floats factor = row(0, channel), offset = row(1, channel);
                   const Floats hat_factor = row(2, channel), hat_offset = row(3, channel);
                   Floats first{}, second{};
                   for (int64_t pixel = begin; pixel < end; ++pixel) {
                       const int64_t at = pixel * channels + channel;
                       const Floats values = load(x + at, count), g = load(grad + at, count);
                       const Floats before = values * factor + offset > 0.0f ? g : g * slope;
                       first += before;
                       second += before * (values * hat_factor + hat_offset);
                   }
                   sums[0] = first, sums[1] = second;
               });
    for (int64_t channel = 0; channel < channels; ++channel) {
        grad_scale[channel] = float(second[channel]);
        if (grad_shift) grad_shift[channel] = float(first[channel]);
        rows[4 * padded + channel] = float(first[channel] / pixels);
        rows[5 * padded + channel] = float(second[channel] / pixels);
    }
    for_pixels(pixels, channels, threads, [&](int64_t channel, int64_t begin, int64_t end) {
        const int64_t count = channels - channel;
        const Floats factor = row(0, channel), offset = row(1, channel);
        const Floats hat_factor = row(2, channel), hat_offset = row(3, channel);
        const Floats mean_g = row(4, channel), mean_product = row(5, channel);
        for (int64_t pixel = begin; pixel < end; ++pixel) {
            const int64_t at = pixel * channels + channel;
            const Floats values = load(x + at, count), g = load(grad + at, count);
            const Floats before = values * factor + offset > 0.0f ? g : g * slope;
            const Floats normal = values * hat_factor + hat_offset;
            store(grad_x + at, factor * (before - mean_g - normal * mean_product), count);
        }
    });
}

// ---- normalisation of an upsampled tensor, applied to the low-resolution one -----------------------------------------

constexpr int64_t ROWS = 8;  // rows that are summed up in fp32

// Maps of rows · columns pixels of ``inner`` channels: N·C maps of one, or one image's map of C. Upsampling's Gram
// matrix along either axis is tridiagonal, and the upsampled mean is a weighted one. The table of an axis has three
// rows: the diagonal, what couples a pixel to the next, and the weights of the mean.
struct Maps {
    const float *vertical, *horizontal;  // (3, rows) and (3, columns)
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
            store(mixed + at, diagonal * x + below * (load(next + at, count) - c) + above * (load(previous + at, count) - c),
                  count);
        }
        for (int64_t at = 0; at < maps.length; ++at)
            product[at] = own[at] * mixed[at] + right[at] * mixed[at + maps.inner] + left[at] * mixed[at - maps.inner];
    }

  private:
    const Maps& maps;
    std::vector<float> own, right, left, centre, line;
};

// Calls visit(rows, map, row, sums) for every row of every map. ``sums`` are two rows of numbers to add to; a map's are
// added up by channel and returned, two a channel. With ``wanted`` false there are none.
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
        // The centred values are not needed; their place takes the factors.
        rows.along(&factor[map * maps.inner], rows.values);
        rows.along(&pull[map * maps.inner], rows.weights);
        for (int64_t at = 0; at < maps.length; at += LANES) {
            const int64_t count = maps.length - at;
            const Floats pulled = load(&rows.weights[at]) * load(&rows.product[at]);
            store(grad_x + begin + at, load(grad + begin + at, count) * load(&rows.values[at]) + pulled, count);
        }
    });
}

// ---- 3×3 convolution of few channels into many, padded by reflection ------------------------------------------------

constexpr int TAPS = 9;
constexpr int TILE = 8;  // pixels whose sums are in registers at once

inline int64_t reflected(int64_t at, int64_t size) { return at < 0 ? -at : at < size ? at : 2 * (size - 1) - at; }

// One image: (inputs, rows, columns) to rows · columns pixels of ``outputs`` channels; the weight is (outputs, inputs, 9).
struct Narrow {
    const float* weight;
    int64_t inputs, outputs, rows, columns;
    int64_t taps = inputs * TAPS, padded = (outputs + LANES - 1) / LANES * LANES;
    int64_t width = (columns + 2 + 2 * LANES) / LANES * LANES;  // of a padded row, with a vector's rest behind it

    // What the taps of a row see of each input: (inputs, 3, width).
    template <class T>
    void see(const T* x, int64_t row, float* line) const {
        for (int64_t input = 0; input < inputs; ++input)
            for (int64_t dy = 0; dy < 3; ++dy, line += width) {
                const T* from = x + (input * rows + reflected(row + dy - 1, rows)) * columns;
                for (int64_t at = 0; at < columns; at += LANES)
                    store(line + 1 + at, load(from + at, columns - at), columns - at);
                line[0] = line[2];
                line[columns + 1] = line[columns - 1];
            }
    }

    // Where tap ``tap`` sees pixel 0.
    const float* seen(const float* line, int64_t tap) const {
        return line + tap / TAPS * 3 * width + tap % TAPS / 3 * width + tap % 3;
    }
};

template <int PIXELS_, class T>
inline void narrow_tile(const Narrow& of, const float* const* seen, const float* weights, const T* addend, T* out,
                        int64_t column) {
    for (int64_t channel = 0; channel < of.outputs; channel += LANES) {
        const int64_t at = column * of.outputs + channel, count = of.outputs - channel;
        Floats sums[PIXELS_];
        for (int p = 0; p < PIXELS_; ++p) sums[p] = load(addend + at + p * of.outputs, count);
        for (int64_t tap = 0; tap < of.taps; ++tap) {
            const Floats weight = load(weights + tap * of.padded + channel);
            for (int p = 0; p < PIXELS_; ++p) sums[p] += seen[tap][column + p] * weight;
        }
        for (int p = 0; p < PIXELS_; ++p) store(out + at + p * of.outputs, sums[p], count);
    }
}

template <class T>
void convolve_narrow(const T* x, const T* addend, T* out, const Narrow& of, int threads) {
    std::vector<float> weights(of.taps * of.padded);  // outputs innermost
    for (int64_t output = 0; output < of.outputs; ++output)
        for (int64_t tap = 0; tap < of.taps; ++tap) weights[tap * of.padded + output] = of.weight[output * of.taps + tap];
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> line(of.inputs * 3 * of.width);
        std::vector<const float*> seen(of.taps);
        for (int64_t tap = 0; tap < of.taps; ++tap) seen[tap] = of.seen(line.data(), tap);
#pragma omp for
        for (int64_t row = 0; row < of.rows; ++row) {
            of.see(x, row, line.data());
            const int64_t begin = row * of.columns * of.outputs;
            int64_t column = 0;
            for (; column + TILE <= of.columns; column += TILE)
                narrow_tile<TILE>(of, seen.data(), weights.data(), addend + begin, out + begin, column);
            for (; column < of.columns; ++column)
                narrow_tile<1>(of, seen.data(), weights.data(), addend + begin, out + begin, column);
        }
    }
}

template <class T>
void convolve_narrow_backward(const T* x, const T* grad, T* grad_x, float* grad_weight, const Narrow& of, int threads) {
    const int64_t blocks = (of.rows + ROWS - 1) / ROWS, reach = ROWS + 2;
    const int64_t each_weight = of.taps * of.padded, each_pull = of.inputs * reach * of.width;
    // Of each block of rows: the weight's gradient, and that of the rows which its taps see.
    std::vector<float> by_weight(blocks * each_weight), by_pull(blocks * each_pull);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> line(of.inputs * 3 * of.width), planes(of.padded * of.width);
#pragma omp for
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t end = (block + 1) * ROWS < of.rows ? (block + 1) * ROWS : of.rows;
            for (int64_t row = block * ROWS; row < end; ++row) {
                const T* pull = grad + row * of.columns * of.outputs;
                of.see(x, row, line.data());
                for (int64_t channel = 0; channel < of.outputs; channel += LANES) {
                    const int64_t count = of.outputs - channel;
                    for (int64_t input = 0; input < of.inputs; ++input) {
                        const float* seen = of.seen(line.data(), input * TAPS);
                        Floats sums[TAPS] = {};
                        for (int64_t column = 0; column < of.columns; ++column) {
                            const Floats g = load(pull + column * of.outputs + channel, count);
                            for (int tap = 0; tap < TAPS; ++tap)
                                sums[tap] += seen[tap / 3 * of.width + tap % 3 + column] * g;
                        }
                        float* to = &by_weight[block * each_weight + input * TAPS * of.padded + channel];
                        for (int tap = 0; tap < TAPS; ++tap)
                            store(to + tap * of.padded, load(to + tap * of.padded) + sums[tap]);
                    }
                    for (int64_t column = 0; column < of.columns; ++column) {
                        const Floats g = load(pull + column * of.outputs + channel, count);
                        for (int lane = 0; lane < LANES; ++lane) planes[(channel + lane) * of.width + column] = g[lane];
                    }
                }
                for (int64_t input = 0; input < of.inputs; ++input)
                    for (int64_t column = 0; column < of.columns; column += LANES) {
                        Floats sums[TAPS] = {};
                        for (int64_t output = 0; output < of.outputs; ++output) {
                            const Floats g = load(&planes[output * of.width + column]);
                            const float* weight = of.weight + output * of.taps + input * TAPS;
                            for (int tap = 0; tap < TAPS; ++tap) sums[tap] += g * weight[tap];
                        }
                        float* to = &by_pull[block * each_pull + (input * reach + row - block * ROWS) * of.width + column];
                        for (int tap = 0; tap < TAPS; ++tap) {
                            float* place = to + tap / 3 * of.width + tap % 3;
                            store(place, load(place) + sums[tap]);
                        }
                    }
            }
        }
    }
    for (int64_t output = 0; output < of.outputs; ++output)
        for (int64_t tap = 0; tap < of.taps; ++tap) {
            double total = 0;
            for (int64_t block = 0; block < blocks; ++block)
                total += by_weight[block * each_weight + tap * of.padded + output];
            grad_weight[output * of.taps + tap] = float(total);
        }
    // The rows' gradients, those of the padding added to what it repeats.
    std::vector<float> total(of.inputs * of.rows * of.columns);
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t input = 0; input < of.inputs; ++input)
            for (int64_t r = 0; r < reach && block * ROWS + r < of.rows + 2; ++r) {
                const float* from = &by_pull[block * each_pull + (input * reach + r) * of.width];
                float* to = &total[(input * of.rows + reflected(block * ROWS + r - 1, of.rows)) * of.columns];
                for (int64_t column = 0; column < of.columns; ++column) to[column] += from[column + 1];
                to[1] += from[0];
                to[of.columns - 2] += from[of.columns + 1];
            }
    const int64_t size = int64_t(total.size());
    for (int64_t at = 0; at < size; at += LANES) store(grad_x + at, load(&total[at], size - at), size - at);
}

// ---- the last layer and the loss, forward and backward -------------------------------------------------------------

// What a block of pixels of one image has: sigmoid outputs, errors' squares, and the gradients before the sigmoid.
struct Head {
    const float *weight, *bias, *target;  // (outputs, channels), (outputs), (outputs, pixels): of this image
    float* output;                        // like target
    int64_t outputs, channels, pixels;

    // From logits to ``pull``, the loss's gradient with respect to them; returns the sum of the squared errors.
    Floats pulled(int64_t which, int64_t at, int64_t count, Floats logits, Floats& pull) const {
        const Floats out = 1.0f / (1.0f + exponential(-logits - bias[which]));
        const int64_t place = which * pixels + at;
        Floats error = out - load(target + place, count);
        store(output + place, out, count);
        if (count < LANES)
            for (int64_t lane = count; lane < LANES; ++lane) error[lane] = 0;
        pull = (2.0f / float(outputs * pixels)) * error * out * (1.0f - out);
        return error * error;
    }
};

template <class T, bool innermost>
void head(const T* x, T* grad_x, const Head* heads, float* grad_weight, float* grad_bias, float* losses,
          int64_t images, int threads) {
    const int64_t outputs = heads->outputs, channels = heads->channels, pixels = heads->pixels;
    const int64_t blocks = (pixels + BLOCK - 1) / BLOCK, padded = (channels + LANES - 1) / LANES * LANES;
    // A block's sums: the weight's gradient, the bias's, and the squared errors.
    const int64_t each = outputs * padded + outputs + 1;
    std::vector<float> partial(images * blocks * each);
#pragma omp parallel num_threads(threads)
    {
        std::vector<Floats> lanes(outputs * channels), pulls(outputs), logits(outputs);
        // The weight with whole vectors of channels.
        std::vector<float> rows(outputs * padded);
#pragma omp for collapse(2)
        for (int64_t image = 0; image < images; ++image)
            for (int64_t block = 0; block < blocks; ++block) {
                const Head& own = heads[image];
                const T* from = x + image * channels * pixels;
                T* to = grad_x + image * channels * pixels;
                float* sums = &partial[(image * blocks + block) * each];
                std::vector<Floats> bias_sums(outputs);
                Floats squares{};
                if (innermost)
                    for (int64_t o = 0; o < outputs; ++o)
                        std::memcpy(&rows[o * padded], own.weight + o * channels, channels * sizeof(float));
                for (Floats& lane : lanes) lane = Floats{};
                const int64_t end = (block + 1) * BLOCK < pixels ? (block + 1) * BLOCK : pixels;
                for (int64_t at = block * BLOCK; at < end; at += LANES) {
                    const int64_t count = end - at < LANES ? end - at : LANES;
                    for (Floats& logit : logits) logit = Floats{};
                    if (innermost) {
                        for (int64_t lane = 0; lane < count; ++lane)
                            for (int64_t o = 0; o < outputs; ++o) {
                                Floats products{};
                                for (int64_t c = 0; c < channels; c += LANES)
                                    products += load(&rows[o * padded + c]) *
                                                load(from + (at + lane) * channels + c, channels - c);
                                logits[o][lane] = sum(products);
                            }
                    } else {
                        for (int64_t c = 0; c < channels; ++c) {
                            const Floats values = load(from + c * pixels + at, count);
                            for (int64_t o = 0; o < outputs; ++o) logits[o] += values * own.weight[o * channels + c];
                        }
                    }
                    for (int64_t o = 0; o < outputs; ++o) {
                        squares += own.pulled(o, at, count, logits[o], pulls[o]);
                        bias_sums[o] += pulls[o];
                    }
                    if (innermost) {
                        for (int64_t lane = 0; lane < count; ++lane)
                            for (int64_t c = 0; c < channels; c += LANES) {
                                const int64_t place = (at + lane) * channels + c;
                                const Floats values = load(from + place, channels - c);
                                Floats grad{};
                                for (int64_t o = 0; o < outputs; ++o) {
                                    const float pull = pulls[o][lane];
                                    grad += pull * load(&rows[o * padded + c]);
                                    float* sum_at = sums + o * padded + c;
                                    store(sum_at, load(sum_at) + pull * values);
                                }
                                store(to + place, grad, channels - c);
                            }
                    } else {
                        for (int64_t c = 0; c < channels; ++c) {
                            const Floats values = load(from + c * pixels + at, count);
                            Floats grad{};
                            for (int64_t o = 0; o < outputs; ++o) {
                                grad += pulls[o] * own.weight[o * channels + c];
                                lanes[o * channels + c] += pulls[o] * values;
                            }
                            store(to + c * pixels + at, grad, count);
                        }
                    }
                }
                if (!innermost)
                    for (int64_t o = 0; o < outputs; ++o)
                        for (int64_t c = 0; c < channels; ++c) sums[o * padded + c] = sum(lanes[o * channels + c]);
                for (int64_t o = 0; o < outputs; ++o) sums[outputs * padded + o] = sum(bias_sums[o]);
                sums[outputs * padded + outputs] = sum(squares);
            }
    }
    for (int64_t image = 0; image < images; ++image) {
        const float* sums = &partial[image * blocks * each];
        const auto total = [&](int64_t which) {
            double value = 0;
            for (int64_t block = 0; block < blocks; ++block) value += sums[block * each + which];
            return value;
        };
        for (int64_t o = 0; o < outputs; ++o) {
            for (int64_t c = 0; c < channels; ++c)
                grad_weight[(image * outputs + o) * channels + c] = float(total(o * padded + c));
            grad_bias[image * outputs + o] = float(total(outputs * padded + o));
        }
        losses[image] = float(total(outputs * padded + outputs) / (outputs * pixels));
    }
}

template <class T>
void heads(const T* x, T* grad_x, const float* weight, const float* bias, const float* target, float* output,
           float* grad_weight, float* grad_bias, float* losses, int64_t images, int64_t outputs, int64_t channels,
           int64_t pixels, bool innermost, int threads) {
    std::vector<Head> own;
    for (int64_t image = 0; image < images; ++image)
        own.push_back({weight + image * outputs * channels, bias + image * outputs,
                       target + image * outputs * pixels, output + image * outputs * pixels, outputs, channels,
                       pixels});
    const auto run = innermost ? head<T, true> : head<T, false>;
    run(x, grad_x, own.data(), grad_weight, grad_bias, losses, images, threads);
}

}  // namespace

// ---- the interface, see library.py: each function for fp32 and for bf16 ------------------------------------------------

#define INTERFACE(NAME, T)                                                                                            \
    void perturb_##NAME(const float* fixed, T* out, const int64_t* seeds, int64_t images, int64_t size,               \
                        int64_t iteration, float deviation, int threads) {                                            \
        perturb(fixed, out, seeds, images, size, iteration, deviation, threads);                                      \
    }                                                                                                                 \
    void normalise_##NAME(const T* x, T* y, const float* scale, const float* shift, double* statistics,               \
                          int64_t channels, int64_t pixels, int innermost, double eps, float slope, int threads) {    \
        const auto run = innermost ? normalise_pixels<T> : normalise_planes<T>;                                       \
        run(x, y, scale, shift, statistics, channels, pixels, eps, slope, threads);                                   \
    }                                                                                                                 \
    void normalise_backward_##NAME(const T* x, const T* grad, T* grad_x, const float* scale, const float* shift,      \
                                   const double* statistics, float* grad_scale, float* grad_shift, int64_t channels,  \
                                   int64_t pixels, int innermost, float slope, int threads) {                         \
        const auto run = innermost ? normalise_pixels_backward<T> : normalise_planes_backward<T>;                     \
        run(x, grad, grad_x, scale, shift, statistics, grad_scale, grad_shift, channels, pixels, slope, threads);     \
    }                                                                                                                 \
    void normalise_upsampled_##NAME(const T* x, T* y, const float* scale, double* statistics, const float* vertical,   \
                                    const float* horizontal, int64_t maps, int64_t rows, int64_t columns,             \
                                    int64_t inner, double pixels, double eps, int threads) {                          \
        normalise_upsampled(x, y, scale, statistics, {vertical, horizontal, maps, rows, columns, inner, pixels}, eps, \
                            threads);                                                                                 \
    }                                                                                                                 \
    void normalise_upsampled_backward_##NAME(const T* x, const T* grad, T* grad_x, const float* scale,                \
                                             const double* statistics, float* grad_scale, const float* vertical,      \
                                             const float* horizontal, int64_t maps, int64_t rows, int64_t columns,    \
                                             int64_t inner, double pixels, int threads) {                             \
        normalise_upsampled_backward(x, grad, grad_x, scale, statistics, grad_scale,                                  \
                                     {vertical, horizontal, maps, rows, columns, inner, pixels}, threads);            \
    }                                                                                                                 \
    void convolve_narrow_##NAME(const T* x, const T* addend, T* out, const float* weight, int64_t inputs,             \
                                int64_t outputs, int64_t rows, int64_t columns, int threads) {                        \
        convolve_narrow(x, addend, out, {weight, inputs, outputs, rows, columns}, threads);                           \
    }                                                                                                                 \
    void convolve_narrow_backward_##NAME(const T* x, const T* grad, T* grad_x, const float* weight,                   \
                                         float* grad_weight, int64_t inputs, int64_t outputs, int64_t rows,           \
                                         int64_t columns, int threads) {                                              \
        convolve_narrow_backward(x, grad, grad_x, grad_weight, {weight, inputs, outputs, rows, columns}, threads);    \
    }                                                                                                                 \
    void head_##NAME(const T* x, T* grad_x, const float* weight, const float* bias, const float* target,              \
                     float* output, float* grad_weight, float* grad_bias, float* losses, int64_t images,              \
                     int64_t outputs, int64_t channels, int64_t pixels, int innermost, int threads) {                 \
        heads(x, grad_x, weight, bias, target, output, grad_weight, grad_bias, losses, images, outputs, channels,     \
              pixels, innermost, threads);                                                                            \
    }

extern "C" {
INTERFACE(fp32, float)
INTERFACE(bf16, Bf16)
}
