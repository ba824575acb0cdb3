// Fresh noise.
#pragma once

#include "vectors.h"

namespace {

// The two halves of each number's product with a factor.
inline void multiply(Words numbers, uint32_t factor, Words& high, Words& low) {
#ifdef __AVX2__
    // By the instruction for every second number, which g++ does not find.
    typedef uint64_t Pairs __attribute__((vector_size(4 * LANES)));
    const auto products = [=](Pairs pairs) {
#ifdef __AVX512F__
        return (Pairs)_mm512_mul_epu32((__m512i)pairs, _mm512_set1_epi64(factor));
#else
        return (Pairs)_mm256_mul_epu32((__m256i)pairs, _mm256_set1_epi64x(factor));
#endif
    };
    const Pairs pairs = bits_of<Pairs>(numbers), even = products(pairs), odd = products(pairs >> 32);
    low = bits_of<Words>((even & 0xffffffffu) | (odd << 32));
    high = bits_of<Words>((even >> 32) | (odd & 0xffffffff00000000u));
#else
    const Longs products = __builtin_convertvector(numbers, Longs) * factor;
    low = __builtin_convertvector(products, Words);
    high = __builtin_convertvector(products >> 32, Words);
#endif
}

// Philox 4×32-10 (Salmon et al. 2011) of a vector of counters.
inline void philox(uint64_t key, Words counter, uint32_t iteration, Words out[4]) {
    Words a = counter, b = Words{} + iteration, c = Words{}, d = Words{};
    uint32_t low = uint32_t(key), high = uint32_t(key >> 32);
    for (int round = 0; round < 10; ++round) {
        Words high_first, high_second, first, second;
        multiply(a, 0xD2511F53u, high_first, first);
        multiply(c, 0xCD9E8D57u, high_second, second);
        a = high_second ^ b ^ low;
        c = high_first ^ d ^ high;
        b = second;
        d = first;
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

// A pair of normal numbers from two words, by Box and Muller.
inline void normal(Words radius, Words angle, Floats& first, Floats& second) {
    const Floats uniform = __builtin_convertvector(radius >> 8, Floats) * 0x1p-24f + 0x1p-25f;
    const Floats length = root(-2.0f * logarithm(uniform));
    // The angle's first two bits are the quadrant; the others, as a signed number, are the angle from its centre.
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

// 16 counters give 64 numbers: 16 of each of their four words, in any width of vectors.
template <class T>
void perturb(const float* fixed, T* out, const int64_t* seeds, int64_t images, int64_t size, int64_t iteration,
             float deviation, int threads) {
    constexpr int64_t COUNTERS = 16, EACH = 4 * COUNTERS;
    const int64_t chunks = (size + EACH - 1) / EACH;
    Words lane{};
    for (int i = 0; i < LANES; ++i) lane[i] = i;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t image = 0; image < images; ++image)
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
            for (int64_t first = 0; first < COUNTERS; first += LANES) {
                Words words[4];
                Floats values[4];
                philox(uint64_t(seeds[image]), lane + uint32_t(chunk * COUNTERS + first), uint32_t(iteration), words);
                normal(words[0], words[1], values[0], values[1]);
                normal(words[2], words[3], values[2], values[3]);
                for (int part = 0; part < 4; ++part) {
                    const int64_t at = chunk * EACH + part * COUNTERS + first, count = size - at;
                    if (count <= 0) break;
                    const int64_t place = image * size + at;
                    store(out + place, load(fixed + place, count) + deviation * values[part], count);
                }
            }
}

}  // namespace
