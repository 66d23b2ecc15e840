// What the lookups of tables share: elements in blocks, and loads from a table, which are done one by one: that is
// faster than the processors' own gathers. A loop does one thing to a block, so that compilers turn it into vectors.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__clang__)
#define NO_VECTORS __attribute__((noinline))
#define ONE_BY_ONE _Pragma("clang loop vectorize(disable) unroll(enable)")
#else
#define NO_VECTORS __attribute__((noinline, optimize("no-tree-vectorize", "no-tree-slp-vectorize")))
#define ONE_BY_ONE _Pragma("GCC unroll 4")
#endif

namespace rows {

constexpr int BLOCK = 256;
constexpr int AHEAD = 4 * BLOCK;
constexpr int LINE = 64;  // bytes

// As many numbers as a register of the processor holds: GCC is slow with vectors that it has to take apart.
#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

using Four = float __attribute__((vector_size(16)));
using Vector = float __attribute__((vector_size(4 * LANES)));

// Four numbers of a table, by their place.
struct alignas(16) Row {
    float first, second, third, fourth;
};

// The rows of LANES elements, number by number.
struct Columns {
    Vector first, second, third, fourth;
};

// What lies some blocks ahead is asked for now: a block's work is too long for the processor to see the next.
template <typename T>
inline void prefetch(const T* block) {
    for (std::size_t i = 0; i < BLOCK; i += LINE / sizeof(T)) __builtin_prefetch(block + AHEAD + i);
}

template <typename T>
NO_VECTORS void fetch(const T* __restrict table, const std::int32_t* __restrict places, T* __restrict found) {
    ONE_BY_ONE
    for (int i = 0; i < BLOCK; i++) found[i] = table[places[i]];
}

template <typename T>
inline T load(const void* numbers) {
    T found;
    std::memcpy(&found, numbers, sizeof found);
    return found;
}

inline void store(void* numbers, Vector vector) {
    std::memcpy(numbers, &vector, sizeof vector);
}

// GCC has __builtin_shufflevector from 12; before, vectors of one length can be shuffled, by a mask.
#if defined(__clang__)
#undef WITHOUT_SHUFFLEVECTOR
#elif __GNUC__ < 12 && !defined(WITHOUT_SHUFFLEVECTOR)
#define WITHOUT_SHUFFLEVECTOR 1
#endif

#if WITHOUT_SHUFFLEVECTOR
using Mask = std::int32_t __attribute__((vector_size(4 * LANES)));
#define SHUFFLE(u, v, ...) __builtin_shuffle(u, v, Mask{__VA_ARGS__})
#else
#define SHUFFLE(u, v, ...) __builtin_shufflevector(u, v, __VA_ARGS__)
#endif

// The same of the numbers of each four lanes.
#if LANES == 16
#define OF_EACH(i, j, k, l) \
    i, j, k, l, i + 4, j + 4, k + 4, l + 4, i + 8, j + 8, k + 8, l + 8, i + 12, j + 12, k + 12, l + 12
#elif LANES == 8
#define OF_EACH(i, j, k, l) i, j, k, l, i + 4, j + 4, k + 4, l + 4
#else
#define OF_EACH(i, j, k, l) i, j, k, l
#endif

// The rows at every fourth place. GCC makes of the plain loop twice the time for a whole lookup.
inline Vector stacked(const Row* table, const std::int32_t* places) {
#if LANES == 4 || WITHOUT_SHUFFLEVECTOR
    Four all[LANES / 4];
    for (int k = 0; k < LANES / 4; k++) all[k] = load<Four>(table + places[4 * k]);
    return load<Vector>(all);
#else
    const auto two = [=](int k) {
        const Four near = load<Four>(table + places[k]), far = load<Four>(table + places[k + 4]);
        return SHUFFLE(near, far, 0, 1, 2, 3, 4, 5, 6, 7);
    };
#if LANES == 8
    return two(0);
#else
    return SHUFFLE(two(0), two(8), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
#endif
}

// Transposed matrices of four rows, side by side.
inline Columns columns(const Row* table, const std::int32_t* places) {
    const Vector r0 = stacked(table, places), r1 = stacked(table, places + 1);
    const Vector r2 = stacked(table, places + 2), r3 = stacked(table, places + 3);
    constexpr int N = LANES;  // where the lanes of the other vector begin
    const Vector low01 = SHUFFLE(r0, r1, OF_EACH(0, N, 1, N + 1)), high01 = SHUFFLE(r0, r1, OF_EACH(2, N + 2, 3, N + 3));
    const Vector low23 = SHUFFLE(r2, r3, OF_EACH(0, N, 1, N + 1)), high23 = SHUFFLE(r2, r3, OF_EACH(2, N + 2, 3, N + 3));
    return {SHUFFLE(low01, low23, OF_EACH(0, 1, N, N + 1)), SHUFFLE(low01, low23, OF_EACH(2, 3, N + 2, N + 3)),
            SHUFFLE(high01, high23, OF_EACH(0, 1, N, N + 1)), SHUFFLE(high01, high23, OF_EACH(2, 3, N + 2, N + 3))};
}

// Whether a comparison held in any lane.
template <typename Comparison>
inline bool any(Comparison comparison) {
    std::int64_t parts[LANES / 2];
    std::memcpy(parts, &comparison, sizeof parts);
    std::int64_t all = 0;
    for (std::int64_t part : parts) all |= part;
    return all != 0;
}

}  // namespace rows
