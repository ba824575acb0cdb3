// Kernels for a CPU: whole iterations, and everything between the convolutions. dipdefense/native/build.py
// compiles them at run time.
//
// There are two layouts of (N, C, H, W): N·C planes of H·W pixels, or, for one image alone, H·W pixels of C channels,
// which is that of whole iterations.
// Values are fp32 or bf16; sums are fp32 within a block and double across blocks. Blocks have a fixed size and are
// added in order, and no sum spans images: results depend neither on the number of threads nor on the batch.

#include "head.h"
#include "iterate.h"
#include "narrow.h"
#include "noise.h"
#include "normalise.h"
#include "upsampled.h"

namespace {

// The tables of both sides of an upsampled tensor.
struct Sides {
    int64_t height, width;
    std::vector<float> vertical = upsampling_table(height), horizontal = upsampling_table(width);

    Sides(int64_t height, int64_t width) : height(height), width(width) {}
    Maps maps(int64_t count, int64_t inner) const {
        return {vertical.data(), horizontal.data(), count, (height + 1) / 2, (width + 1) / 2, inner,
                double(height * width)};
    }
};

}  // namespace

// The functions that library.py calls, each for fp32 and for bf16.
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
    void normalise_upsampled_##NAME(const T* x, T* y, const float* scale, double* statistics, int64_t maps,           \
                                    int64_t height, int64_t width, int64_t inner, double eps, int threads) {          \
        normalise_upsampled(x, y, scale, statistics, Sides(height, width).maps(maps, inner), eps, threads);           \
    }                                                                                                                 \
    void normalise_upsampled_backward_##NAME(const T* x, const T* grad, T* grad_x, const float* scale,                \
                                             const double* statistics, float* grad_scale, int64_t maps,               \
                                             int64_t height, int64_t width, int64_t inner, int threads) {             \
        normalise_upsampled_backward(x, grad, grad_x, scale, statistics, grad_scale,                                  \
                                     Sides(height, width).maps(maps, inner), threads);                                \
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
    }                                                                                                                 \
    void measure_##NAME(const Shape* shape, int64_t* parameters, int64_t* floats) {                                   \
        const Network<T> network(*shape);                                                                             \
        *parameters = network.parameters, *floats = network.floats;                                                   \
    }                                                                                                                 \
    void iterate_##NAME(const Shape* shape, float* parameter, float* first, float* second, const float* fixed,        \
                        const float* target, float* outputs, float* losses, const int64_t* seeds, int64_t images,     \
                        int64_t iteration, float* space, int threads) {                                               \
        iterate<T>(*shape, parameter, first, second, fixed, target, outputs, losses, seeds, images, iteration, space, \
                   threads);                                                                                          \
    }

extern "C" {
INTERFACE(fp32, float)
INTERFACE(bf16, Bf16)
}
