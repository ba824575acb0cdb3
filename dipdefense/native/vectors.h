// Vectors of numbers, in memory as fp32 or bf16, and vector forms of functions that C++ has for scalars only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

// As the processor has them: what compilers make of wider ones is many times slower.
#if defined __AVX512F__
constexpr int LANES = 16;
#elif defined __AVX__
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int64_t BLOCK = 1024;  // values of a plane that are summed up in fp32
constexpr int64_t PIXELS = 256;  // pixels likewise, where channels are innermost
constexpr int64_t ROWS = 8;      // rows of pixels likewise

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

// The nearest bf16, in the lower half of each word.
inline Words rounded(Floats values) {
    const Words bits = bits_of<Words>(values);
    const Words even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN must not be rounded up to infinity or beyond.
    return values == values ? even : Words{} + 0x7fc0;
}

inline void store(Bf16* to, Floats values) {
#ifdef __AVX512BF16__
    const auto halves = _mm512_cvtneps_pbh((__m512)values);
#else
    const Halves halves = __builtin_convertvector(rounded(values), Halves);
#endif
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

// Where padding by reflection takes a line from.
inline int64_t reflected(int64_t at, int64_t size) { return at < 0 ? -at : at < size ? at : 2 * (size - 1) - at; }

// The transpose of LANES² numbers, whose rows are these distances apart.
inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
#ifdef __AVX512F__
    __m512 a[LANES], b[LANES];
    const auto low = [](__m512 x, __m512 y) { return (__m512)_mm512_unpacklo_pd((__m512d)x, (__m512d)y); };
    const auto high = [](__m512 x, __m512 y) { return (__m512)_mm512_unpackhi_pd((__m512d)x, (__m512d)y); };
    for (int i = 0; i < LANES; ++i) a[i] = _mm512_loadu_ps(from + i * from_row);
    for (int i = 0; i < LANES; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        a[i] = low(b[i], b[i + 2]), a[i + 1] = high(b[i], b[i + 2]);
        a[i + 2] = low(b[i + 1], b[i + 3]), a[i + 3] = high(b[i + 1], b[i + 3]);
    }
    // Each quarter of a[4 i + j] has four rows of one column.
    for (int j = 0; j < 4; ++j) {
        const __m512 even = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88);
        const __m512 odd = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
        const __m512 more = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
        const __m512 rest = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
        _mm512_storeu_ps(to + j * to_row, _mm512_shuffle_f32x4(even, more, 0x88));
        _mm512_storeu_ps(to + (4 + j) * to_row, _mm512_shuffle_f32x4(odd, rest, 0x88));
        _mm512_storeu_ps(to + (8 + j) * to_row, _mm512_shuffle_f32x4(even, more, 0xdd));
        _mm512_storeu_ps(to + (12 + j) * to_row, _mm512_shuffle_f32x4(odd, rest, 0xdd));
    }
#else
    for (int row = 0; row < LANES; ++row)
        for (int column = 0; column < LANES; ++column) to[column * to_row + row] = from[row * from_row + column];
#endif
}

// Reads a vector of channels of each of a vector of pixels, ``distance`` apart, and writes a row for each channel. Only
// the first ``pixels`` and ``channels`` are read; the others are zero.
template <class T>
inline void read_channels(const T* from, int64_t distance, int64_t pixels, int64_t channels, float* to,
                          int64_t to_row) {
    float block[LANES * LANES];
    for (int64_t pixel = 0; pixel < LANES; ++pixel)
        store(block + pixel * LANES, pixel < pixels ? load(from + pixel * distance, channels) : Floats{});
    transpose(block, LANES, to, to_row);
}

}  // namespace
