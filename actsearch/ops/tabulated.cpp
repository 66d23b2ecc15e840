// A fixed function on a CPU: see tabulated.py, which makes the table and tells what its numbers are.

#include <algorithm>

#include "rows.hpp"

namespace {

using namespace rows;

struct Grid {
    int shift;                // of a float's bits: what is left numbers the segments
    std::int32_t first;       // the number of the first segment that its bits tell; those below it are one more
    std::int32_t segments;    // of each sign
    std::int32_t beyond;      // bits of the least number that no segment holds
    float per_first;          // 1 / (width of the segment next to 0)
};

// A row holds a, b, c and d of a + t (b + t (c + t d)). Of a segment that has a kink, d is NaN, a is the kink's place, and
// b the number of the row up to there; the next one is that of the rest.
inline float at_kink(const Row* table, std::int32_t piece, float t) {
    const Row mark = table[piece];
    const Row row = table[static_cast<std::int32_t>(mark.second) + (t >= mark.first)];
    return row.first + t * (row.second + t * (row.third + t * row.fourth));
}

// One block; all arrays have BLOCK elements. Returns how many elements lie beyond the table, which are left as they come.
template <bool TIMES>
int look_up(const float* x, const float* g, const Grid& grid, const Row* table, float* y) {
    alignas(64) std::int32_t bits[BLOCK], piece[BLOCK];
    alignas(64) float place[BLOCK];
    prefetch(x);
    if (TIMES) prefetch(g);
    std::memcpy(bits, x, sizeof bits);
    const std::int32_t rest = (1 << grid.shift) - 1;
    const float per_rest = 1.0f / static_cast<float>(1 << grid.shift);
    int outside = 0;
    for (int i = 0; i < BLOCK; i++) {
        const std::int32_t magnitude = bits[i] & 0x7FFFFFFF;
        const std::int32_t segment =
            std::min(std::max((magnitude >> grid.shift) - grid.first, 0), grid.segments - 1);
        piece[i] = segment + ((bits[i] >> 31) & grid.segments);
        const float within = static_cast<float>(magnitude & rest) * per_rest;
        const float near_zero = __builtin_fabsf(x[i]) * grid.per_first;
        place[i] = near_zero < 1.0f ? near_zero : within;
        outside += magnitude >= grid.beyond;
    }
    for (int i = 0; i < BLOCK; i += LANES) {
        const auto [a, b, c, d] = columns(table, piece + i);
        const Vector t = load<Vector>(place + i);
        Vector value = a + t * (b + t * (c + t * d));
        if (__builtin_expect(any(value != value), 0)) {
            alignas(64) float each[LANES];
            store(each, value);
            for (int j = 0; j < LANES; j++) {
                if (each[j] != each[j]) each[j] = at_kink(table, piece[i + j], place[i + j]);
            }
            value = load<Vector>(each);
        }
        store(y + i, TIMES ? value * load<Vector>(g + i) : value);
    }
    return outside;
}

template <bool TIMES>
std::int64_t look_up_all(const float* x, const float* g, std::int64_t n, const Grid& grid, const Row* table, float* y,
                         int threads) {
    std::int64_t outside = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : outside)
    for (std::int64_t start = 0; start < n; start += BLOCK) {
        const float* of = TIMES ? g + start : nullptr;
        if (n - start >= BLOCK) {
            outside += look_up<TIMES>(x + start, of, grid, table, y + start);
        } else {  // the last, incomplete block
            const std::size_t bytes = static_cast<std::size_t>(n - start) * sizeof(float);
            float some[BLOCK] = {}, scales[BLOCK] = {}, found[BLOCK];
            std::memcpy(some, x + start, bytes);
            if (TIMES) std::memcpy(scales, of, bytes);
            outside += look_up<TIMES>(some, scales, grid, table, found);
            std::memcpy(y + start, found, bytes);
        }
    }
    return outside;
}

}  // namespace

// The function at n elements, or g times it where g is not null; returns how many lie beyond the table.
extern "C" std::int64_t tabulated(const float* x, const float* g, std::int64_t n, int shift, std::int32_t first,
                                  std::int32_t segments, std::int32_t beyond, float per_first, const float* numbers,
                                  float* y, int threads) {
    const Grid grid{shift, first, segments, beyond, per_first};
    const Row* table = reinterpret_cast<const Row*>(numbers);
    return g ? look_up_all<true>(x, g, n, grid, table, y, threads)
             : look_up_all<false>(x, g, n, grid, table, y, threads);
}
