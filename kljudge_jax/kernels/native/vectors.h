// A register of the processor at hand as a type, and what all tiles do with it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

// Loops over the registers of a tile, which must all be named before the compiler decides where they lie.
#if defined(__clang__)
#define KLJUDGE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KLJUDGE_UNROLL _Pragma("GCC unroll 16")
#endif

// Code for one processor is not to be mistaken for that of another: a process may load builds for several of them.
namespace kljudge __attribute__((visibility("hidden"))) {

// Memory that starts with a cache line: a load across two lines takes twice as long.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U> Aligned(const Aligned<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* at, size_t) { ::operator delete(at, std::align_val_t{64}); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
template <class T>
using Buffer = std::vector<T, Aligned<T>>;

// One register of the processor at hand, and how many there are.
#if defined(__AVX512F__)
constexpr int64_t kBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int64_t kBytes = 32;
constexpr int kRegisters = 16;
#elif defined(__ARM_NEON)
constexpr int64_t kBytes = 16;
constexpr int kRegisters = 32;
#else
constexpr int64_t kBytes = 16;
constexpr int kRegisters = 16;
#endif
constexpr int64_t kLanes = kBytes / 4;

typedef float F32 __attribute__((vector_size(kBytes)));
typedef uint32_t U32 __attribute__((vector_size(kBytes)));
typedef int32_t I32 __attribute__((vector_size(kBytes)));
typedef uint8_t U8 __attribute__((vector_size(kBytes)));

// How far ahead weights are called into the second cache. Four rows are read at a time, which the processor does not
// see through: left to itself a core reads at half of what the memory gives.
constexpr int64_t kAhead = 16 << 10;

template <class V>
inline V Load(const void* at) {
  V v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

template <class V>
inline void Put(void* at, V v) {
  std::memcpy(at, &v, sizeof v);
}

inline float Sum(F32 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float lanes[kLanes];
  Put(lanes, v);
  for (int step = kLanes / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
#endif
}

// How many of the rows that are left go in the next tile, where one has room for `most`.
inline int64_t TileRows(int64_t left, int64_t most) {
  const int64_t tiles = (left + most - 1) / most;  // of much the same size: one row costs as much as two
  return (left + tiles - 1) / tiles;
}

// Calls `f` with each number of a sequence, which it knows when it is compiled.
template <int... kNumbers, class F>
inline void ForEach(std::integer_sequence<int, kNumbers...>, F f) {
  (f(std::integral_constant<int, kNumbers>{}), ...);
}

// The sums of four vectors side by side. A matrix of few columns has hardly more products than sums.
inline void SumFour(const F32* v, float* out) {
#if defined(__AVX512F__)
  const __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
  const __m512d ab = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512d cd = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 all = _mm512_add_ps((__m512)_mm512_unpacklo_pd(ab, cd), (__m512)_mm512_unpackhi_pd(ab, cd));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all),
                                    _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(__AVX2__)
  const __m256 ab = _mm256_hadd_ps((__m256)v[0], (__m256)v[1]), cd = _mm256_hadd_ps((__m256)v[2], (__m256)v[3]);
  const __m256 all = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
  for (int i = 0; i < 4; ++i) out[i] = Sum(v[i]);
#endif
}

// The sums of each of `kOut` vectors.
template <int kOut>
inline void SumEach(const F32* v, float* out) {
  if constexpr (kOut == 4) {
    SumFour(v, out);
  } else {
    // As above, so that an output's sum is the same whoever stands beside it.
    F32 four[4] = {};
    KLJUDGE_UNROLL
    for (int j = 0; j < kOut; ++j) four[j] = v[j];
    float all[4];
    SumFour(four, all);
    KLJUDGE_UNROLL
    for (int j = 0; j < kOut; ++j) out[j] = all[j];
  }
}

}  // namespace kljudge
