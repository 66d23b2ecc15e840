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

using Four = float __attribute__((vector_size(16)));
using Eight = float __attribute__((vector_size(32)));
using Sixteen = float __attribute__((vector_size(64)));

// Four numbers of a table, by their place.
struct alignas(16) Row {
    float first, second, third, fourth;
};

// The rows of sixteen elements, number by number.
struct Columns {
    Sixteen first, second, third, fourth;
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

template <typename Vector>
inline Vector load(const void* numbers) {
    Vector found;
    std::memcpy(&found, numbers, sizeof found);
    return found;
}

template <typename Vector>
inline void store(void* numbers, Vector vector) {
    std::memcpy(numbers, &vector, sizeof vector);
}

// GCC has __builtin_shufflevector from 12; before, vectors of one length can be shuffled, by a mask.
#if !defined(WITHOUT_SHUFFLEVECTOR) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#define WITHOUT_SHUFFLEVECTOR 1
#endif

inline Sixteen stacked(const Row* table, const std::int32_t* places) {
    const Four a = load<Four>(table + places[0]), b = load<Four>(table + places[4]);
    const Four c = load<Four>(table + places[8]), d = load<Four>(table + places[12]);
#if WITHOUT_SHUFFLEVECTOR
    const Four all[] = {a, b, c, d};
    return load<Sixteen>(all);
#else
    const Eight low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
    const Eight high = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
}

// Four transposed matrices of four rows, side by side.
inline Columns columns(const Row* table, const std::int32_t* places) {
    const Sixteen r0 = stacked(table, places), r1 = stacked(table, places + 1);
    const Sixteen r2 = stacked(table, places + 2), r3 = stacked(table, places + 3);
#define OF_EACH(i, j, k, l) \
    i, j, k, l, i + 4, j + 4, k + 4, l + 4, i + 8, j + 8, k + 8, l + 8, i + 12, j + 12, k + 12, l + 12
#if WITHOUT_SHUFFLEVECTOR
    using Mask = std::int32_t __attribute__((vector_size(64)));
#define IN_EACH(u, v, i, j, k, l) __builtin_shuffle(u, v, Mask{OF_EACH(i, j, k, l)})
#else
#define IN_EACH(u, v, i, j, k, l) __builtin_shufflevector(u, v, OF_EACH(i, j, k, l))
#endif
    const Sixteen low01 = IN_EACH(r0, r1, 0, 16, 1, 17), high01 = IN_EACH(r0, r1, 2, 18, 3, 19);
    const Sixteen low23 = IN_EACH(r2, r3, 0, 16, 1, 17), high23 = IN_EACH(r2, r3, 2, 18, 3, 19);
    return {IN_EACH(low01, low23, 0, 1, 16, 17), IN_EACH(low01, low23, 2, 3, 18, 19),
            IN_EACH(high01, high23, 0, 1, 16, 17), IN_EACH(high01, high23, 2, 3, 18, 19)};
#undef IN_EACH
#undef OF_EACH
}

// Whether a comparison of sixteen held anywhere.
template <typename Mask>
inline bool any(Mask mask) {
#if WITHOUT_SHUFFLEVECTOR
    std::int64_t parts[8];
    std::memcpy(parts, &mask, sizeof parts);
    for (int k = 2; k < 8; k++) parts[k & 1] |= parts[k];
#else
    const auto half = __builtin_shufflevector(mask, mask, 0, 1, 2, 3, 4, 5, 6, 7) |
                      __builtin_shufflevector(mask, mask, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto quarter =
        __builtin_shufflevector(half, half, 0, 1, 2, 3) | __builtin_shufflevector(half, half, 4, 5, 6, 7);
    std::int64_t parts[2];
    std::memcpy(parts, &quarter, sizeof parts);
#endif
    return (parts[0] | parts[1]) != 0;
}

}  // namespace rows
