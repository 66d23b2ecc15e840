// The piecewise table on a CPU: see piecewise.py, which holds the same in PyTorch, with the same bits, and knots.py,
// which tells what a descriptor and a code are.
//
// A loop does one thing to a block of elements, so that compilers turn it into vectors, except for the loads from a
// table: those are done one by one, which is faster than the processors' own gathers, and in whole rows.

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__clang__)
#define NO_VECTORS
#define ONE_BY_ONE _Pragma("clang loop vectorize(disable) unroll(enable)")
#else
#define NO_VECTORS __attribute__((noinline, optimize("no-tree-vectorize", "no-tree-slp-vectorize")))
#define ONE_BY_ONE _Pragma("GCC unroll 4")
#endif

namespace {

constexpr int BLOCK = 256;
constexpr int SHIFT = 23 - COARSE_BITS;
constexpr std::int32_t REST = (1 << SHIFT) - 1;
constexpr std::int32_t FIRST = ((127 + LOWEST) << COARSE_BITS) - 1;
constexpr std::int32_t K_MASK = (1 << K_BITS) - 1;
constexpr std::int32_t PLACES = 1 << PLACE_BITS;

using Four = float __attribute__((vector_size(16)));
using FourInts = std::int32_t __attribute__((vector_size(16)));
using FourDoubles = double __attribute__((vector_size(32)));

struct alignas(16) Row {  // of a piece: v + t (a + t c), up to t = end
    float v, a, c, end;
};

struct Slope {  // of a piece: a + t c
    float a, c;
};

NO_VECTORS void fetch(const std::int32_t* __restrict descriptors, const std::int32_t* __restrict coarse,
                      std::int32_t* __restrict found) {
    ONE_BY_ONE
    for (int i = 0; i < BLOCK; i++) found[i] = descriptors[coarse[i]];
}

NO_VECTORS void fetch(const std::uint64_t* __restrict slopes, const std::uint16_t* __restrict codes,
                      std::uint64_t* __restrict found) {
    ONE_BY_ONE
    for (int i = 0; i < BLOCK; i++) found[i] = slopes[codes[i] >> PLACE_BITS];
}

inline Four load(const Row* row) {
    Four four;
    std::memcpy(&four, row, sizeof four);
    return four;
}

// What lies so many blocks ahead is asked for now: a block's work is too long for the processor to see the next.
constexpr int AHEAD = 4 * BLOCK;
constexpr int LINE = 64;  // bytes

template <typename T>
inline void prefetch(const T* block) {
    for (std::size_t i = 0; i < BLOCK; i += LINE / sizeof(T)) __builtin_prefetch(block + AHEAD + i);
}

// One block; all arrays have BLOCK elements.
void look_up(const float* x, const std::int32_t* descriptors, const Row* rows, const std::int32_t* others, float* y,
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
    for (int i = 0; i < BLOCK; i += 16) {
        FourInts beyond = {0, 0, 0, 0};
        for (int j = i; j < i + 16; j += 4) {
            const Four r0 = load(rows + piece[j]), r1 = load(rows + piece[j + 1]);
            const Four r2 = load(rows + piece[j + 2]), r3 = load(rows + piece[j + 3]);
            const Four va01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5);
            const Four ce01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
            const Four va23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
            const Four ce23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
            const Four v = __builtin_shufflevector(va01, va23, 0, 1, 4, 5);
            const Four a = __builtin_shufflevector(va01, va23, 2, 3, 6, 7);
            const Four c = __builtin_shufflevector(ce01, ce23, 0, 1, 4, 5);
            const Four end = __builtin_shufflevector(ce01, ce23, 2, 3, 6, 7);
            Four t;
            std::memcpy(&t, place + j, sizeof t);
            beyond |= t >= end;
            const Four value = v + t * (a + t * c);
            std::memcpy(found + j, &value, sizeof value);
        }
        std::int64_t any[2];
        std::memcpy(any, &beyond, sizeof any);
        if (__builtin_expect((any[0] | any[1]) != 0, 0)) {
            for (int j = i; j < i + 16; j++) {
                const float t = place[j];
                if (t < rows[piece[j]].end) continue;
                piece[j] = others[piece[j]];
                const Row row = rows[piece[j]];
                found[j] = row.v + t * (row.a + t * row.c);
            }
        }
    }
    for (int i = 0; i < BLOCK; i++) {
        y[i] = x[i] == x[i] ? found[i] : x[i];
        codes[i] = static_cast<std::uint16_t>((piece[i] << PLACE_BITS) + static_cast<std::int32_t>(place[i] * PLACES));
    }
}

void scale(const float* g, const std::uint16_t* codes, const std::uint64_t* slopes, float* out) {
    alignas(64) Slope of[BLOCK];
    alignas(64) std::uint64_t fetched[BLOCK];
    prefetch(g);
    prefetch(codes);
    fetch(slopes, codes, fetched);
    std::memcpy(of, fetched, sizeof of);
    for (int i = 0; i < BLOCK; i++) {
        const float t = (static_cast<float>(codes[i] & (PLACES - 1)) + 0.5f) * (1.0f / PLACES);
        out[i] = g[i] * (of[i].a + t * of[i].c);
    }
}

}  // namespace

extern "C" {

// The function at n elements, and their codes.
void look_up_all(const float* x, std::int64_t n, const std::int32_t* descriptors, const float* rows,
                 const std::int32_t* others, float* y, std::uint16_t* codes, int threads) {
    const Row* pieces = reinterpret_cast<const Row*>(rows);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (std::int64_t start = 0; start < n; start += BLOCK) {
        if (n - start >= BLOCK) {
            look_up(x + start, descriptors, pieces, others, y + start, codes + start);
        } else {
            const std::size_t left = static_cast<std::size_t>(n - start);
            float some[BLOCK] = {}, found[BLOCK];
            std::uint16_t of[BLOCK];
            std::memcpy(some, x + start, left * sizeof(float));
            look_up(some, descriptors, pieces, others, found, of);
            std::memcpy(y + start, found, left * sizeof(float));
            std::memcpy(codes + start, of, left * sizeof(std::uint16_t));
        }
    }
}

// g times the function's slope at n elements.
void times_slope(const float* g, const std::uint16_t* codes, std::int64_t n, const float* slopes, float* out,
                 int threads) {
    const std::uint64_t* pairs = reinterpret_cast<const std::uint64_t*>(slopes);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (std::int64_t start = 0; start < n; start += BLOCK) {
        if (n - start >= BLOCK) {
            scale(g + start, codes + start, pairs, out + start);
        } else {
            const std::size_t left = static_cast<std::size_t>(n - start);
            float some[BLOCK] = {}, found[BLOCK];
            std::uint16_t of[BLOCK] = {};
            std::memcpy(some, g + start, left * sizeof(float));
            std::memcpy(of, codes + start, left * sizeof(std::uint16_t));
            scale(some, of, pairs, found);
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
