// The piecewise table on a CPU: see piecewise.py, which holds the same in PyTorch, with the same bits, and tells what a
// code is; knots.py tells what a descriptor is.

#include <algorithm>

#include "rows.hpp"

namespace {

using namespace rows;

constexpr int SHIFT = 23 - COARSE_BITS;
constexpr std::int32_t REST = (1 << SHIFT) - 1;
constexpr std::int32_t FIRST = ((127 + LOWEST) << COARSE_BITS) - 1;
constexpr std::int32_t K_MASK = (1 << K_BITS) - 1;
constexpr std::int32_t PLACES = 1 << PLACE_BITS;

using FourDoubles = double __attribute__((vector_size(32)));

struct Slope {  // of a piece: a + t c
    float a, c;
};

// One block; all arrays have BLOCK elements. A row has v, a, c and end of a piece: v + t (a + t c), up to t = end.
void look_up(const float* x, const std::int32_t* descriptors, const Row* table, const std::int32_t* others, float* y,
             std::uint16_t* codes) {
    alignas(64) std::int32_t bits[BLOCK], coarse[BLOCK], descriptor[BLOCK], piece[BLOCK];
    alignas(64) float place[BLOCK], found[BLOCK];
    prefetch(x);
    std::memcpy(bits, x, sizeof bits);
    for (int i = 0; i < BLOCK; i++) {
        const std::int32_t magnitude = bits[i] & 0x7FFFFFFF;
        coarse[i] = std::min(std::max(magnitude >> SHIFT, FIRST), FIRST + COARSE - 1) - FIRST;
        coarse[i] += (bits[i] >> 31) & COARSE;
    }
    fetch(descriptors, coarse, descriptor);
    for (int i = 0; i < BLOCK; i++) {
        const std::int32_t rest = (bits[i] & REST) << (descriptor[i] & K_MASK);
        piece[i] = (descriptor[i] >> K_BITS) + (rest >> SHIFT);
        const float within = static_cast<float>(rest & REST) * (1.0f / (1 << SHIFT));
        const float near_zero = __builtin_fabsf(x[i]) * static_cast<float>(1 << -LOWEST);
        place[i] = near_zero < 1.0f ? near_zero : within;
    }
    for (int i = 0; i < BLOCK; i += LANES) {
        const auto [v, a, c, end] = columns(table, piece + i);
        const Vector t = load<Vector>(place + i);
        store(found + i, v + t * (a + t * c));
        if (__builtin_expect(any(t >= end), 0)) {
            for (int j = i; j < i + LANES; j++) {
                if (place[j] < table[piece[j]].fourth) continue;
                piece[j] = others[piece[j]];
                const Row row = table[piece[j]];
                found[j] = row.first + place[j] * (row.second + place[j] * row.third);
            }
        }
    }
    for (int i = 0; i < BLOCK; i++) {
        y[i] = x[i] == x[i] ? found[i] : x[i];
        codes[i] = static_cast<std::uint16_t>((piece[i] << PLACE_BITS) + static_cast<std::int32_t>(place[i] * PLACES));
    }
}

void scale(const float* g, const std::uint16_t* codes, const Slope* slopes, float* out) {
    alignas(64) std::int32_t piece[BLOCK];
    alignas(64) Slope of[BLOCK];
    prefetch(g);
    prefetch(codes);
    for (int i = 0; i < BLOCK; i++) piece[i] = codes[i] >> PLACE_BITS;
    fetch(slopes, piece, of);
    for (int i = 0; i < BLOCK; i++) {
        const float t = (static_cast<float>(codes[i] & (PLACES - 1)) + 0.5f) * (1.0f / PLACES);
        out[i] = g[i] * (of[i].a + t * of[i].c);
    }
}

}  // namespace

extern "C" {

// The function at n elements, and their codes.
void look_up_all(const float* x, std::int64_t n, const std::int32_t* descriptors, const float* numbers,
                 const std::int32_t* others, float* y, std::uint16_t* codes, int threads) {
    const Row* table = reinterpret_cast<const Row*>(numbers);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (std::int64_t start = 0; start < n; start += BLOCK) {
        if (n - start >= BLOCK) {
            look_up(x + start, descriptors, table, others, y + start, codes + start);
        } else {  // the last, incomplete block
            const std::size_t left = static_cast<std::size_t>(n - start);
            float some[BLOCK] = {}, found[BLOCK];
            std::uint16_t of[BLOCK];
            std::memcpy(some, x + start, left * sizeof(float));
            look_up(some, descriptors, table, others, found, of);
            std::memcpy(y + start, found, left * sizeof(float));
            std::memcpy(codes + start, of, left * sizeof(std::uint16_t));
        }
    }
}

// g times the function's slope at n elements.
void times_slope(const float* g, const std::uint16_t* codes, std::int64_t n, const float* numbers, float* out,
                 int threads) {
    const Slope* slopes = reinterpret_cast<const Slope*>(numbers);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (std::int64_t start = 0; start < n; start += BLOCK) {
        if (n - start >= BLOCK) {
            scale(g + start, codes + start, slopes, out + start);
        } else {
            const std::size_t left = static_cast<std::size_t>(n - start);
            float some[BLOCK] = {}, found[BLOCK];
            std::uint16_t of[BLOCK] = {};
            std::memcpy(some, g + start, left * sizeof(float));
            std::memcpy(of, codes + start, left * sizeof(std::uint16_t));
            scale(some, of, slopes, found);
            std::memcpy(out + start, found, left * sizeof(float));
        }
    }
}

// Sums of g, g t and g t² by piece, in sums[part][piece][4] (zeros before), of `parts` stretches of the elements.
void moments(const float* g, const std::uint16_t* codes, std::int64_t n, double* sums, int parts, std::int64_t pieces,
             int threads) {
    FourDoubles powers[PLACES];
    for (int k = 0; k < PLACES; k++) {
        const double t = (k + 0.5) / PLACES;
        powers[k] = FourDoubles{1.0, t, t * t, 0.0};
    }
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < parts; part++) {
        double* of = sums + part * pieces * 4;
        const std::int64_t end = n * (part + 1) / parts;
        for (std::int64_t i = n * part / parts; i < end; i++) {
            double* row = of + 4 * (codes[i] >> PLACE_BITS);
            FourDoubles total;
            std::memcpy(&total, row, sizeof total);
            total += static_cast<double>(g[i]) * powers[codes[i] & (PLACES - 1)];
            std::memcpy(row, &total, sizeof total);
        }
    }
}

}  // extern "C"
