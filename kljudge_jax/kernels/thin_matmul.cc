// Products of a few rows with a large weight matrix, for XLA's CPU backend.
//
// Decoding multiplies 1 to some dozen rows by every weight of a model, so that its time is that of reading the weights
// once. XLA's own products repack the weights at every call. Here a weight is read as it is stored, `[O, I]` with I
// contiguous, by all threads of XLA's pool, and each load serves as many rows as there are registers for.
//
// The sum behind one element of the result runs in one order, whatever the number of rows or threads: a token's
// numbers are the same to the bit whether it is scored alone or beside others.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "xla/ffi/api/ffi.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace ffi = xla::ffi;

namespace {

// Vectors of 64 bytes: one register with AVX-512, and as many narrower ones as it takes elsewhere.
typedef float F32 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));

constexpr int64_t kGroup = 64;  // int8 activations share a scale in groups of so many

template <class V>
inline V Load(const void* at) {
  V v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

inline float Sum(F32 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float lanes[16];
  std::memcpy(lanes, &v, sizeof v);
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
#endif
}

// How each kind of weight is multiplied: `kStep` elements at a time, and one by one behind the last whole step.
struct Float32 {
  using Weight = float;
  using Row = float;
  using Vector = F32;
  static constexpr int64_t kStep = 16;
  static inline F32 Add(F32 sum, Vector weight, Vector row) { return sum + weight * row; }
  static inline float AddOne(float sum, Weight weight, Row row) { return sum + weight * row; }
};

struct BFloat16 {
  using Weight = uint16_t;
  using Row = uint16_t;
  using Vector = U32;  // two elements a lane
  static constexpr int64_t kStep = 32;
  static inline F32 Add(F32 sum, Vector weight, Vector row) {
#if defined(__AVX512BF16__)
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)row);
#else
    sum += (F32)(weight << 16) * (F32)(row << 16);
    return sum + (F32)(weight & 0xffff0000u) * (F32)(row & 0xffff0000u);
#endif
  }
  static inline float Widen(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  static inline float AddOne(float sum, Weight weight, Row row) { return sum + Widen(weight) * Widen(row); }
};

// `kOut` weights by `kRows` rows; out[r * stride + o].
template <class Kind, int kOut, int kRows>
inline void Tile(const typename Kind::Weight* weight, const typename Kind::Row* rows, int64_t size, float* out,
                 int64_t stride) {
  using Vector = typename Kind::Vector;
  F32 sums[kOut][kRows] = {};
  int64_t i = 0;
  for (; i + Kind::kStep <= size; i += Kind::kStep) {
    Vector w[kOut];
    for (int o = 0; o < kOut; ++o) {
      w[o] = Load<Vector>(weight + o * size + i);
      __builtin_prefetch(reinterpret_cast<const char*>(weight + o * size + i) + 1024);
    }
    for (int r = 0; r < kRows; ++r) {
      const Vector x = Load<Vector>(rows + r * size + i);
      for (int o = 0; o < kOut; ++o) sums[o][r] = Kind::Add(sums[o][r], w[o], x);
    }
  }
  for (int o = 0; o < kOut; ++o)
    for (int r = 0; r < kRows; ++r) {
      float sum = Sum(sums[o][r]);
      for (int64_t j = i; j < size; ++j) sum = Kind::AddOne(sum, weight[o * size + j], rows[r * size + j]);
      out[r * stride + o] = sum;
    }
}

template <class Kind, int kOut>
void Rows(const typename Kind::Weight* weight, const typename Kind::Row* rows, int64_t count, int64_t size, float* out,
          int64_t stride) {
  // As many rows as there are registers for the sums; a remainder of one row costs as much as two.
  while (count > 0) {
    const int64_t now = count <= 6 ? count : count < 12 ? (count + 1) / 2 : 6;
    switch (now) {
      case 1: Tile<Kind, kOut, 1>(weight, rows, size, out, stride); break;
      case 2: Tile<Kind, kOut, 2>(weight, rows, size, out, stride); break;
      case 3: Tile<Kind, kOut, 3>(weight, rows, size, out, stride); break;
      case 4: Tile<Kind, kOut, 4>(weight, rows, size, out, stride); break;
      case 5: Tile<Kind, kOut, 5>(weight, rows, size, out, stride); break;
      default: Tile<Kind, kOut, 6>(weight, rows, size, out, stride); break;
    }
    rows += now * size;
    out += now * stride;
    count -= now;
  }
}

// Calls `work(begin, end)` over parts of 0..count on all threads of the pool, this one included.
template <class Work>
void InParallel(ffi::ThreadPool& pool, int64_t count, int64_t part, Work work) {
  const int64_t parts = (count + part - 1) / part;
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  // A helper that starts late finds no part left and touches nothing but `shared`.
  auto help = [shared, parts, count, part, work] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < parts;) {
      work(i * part, std::min(count, (i + 1) * part));
      shared->done.fetch_add(1);
    }
  };
  const int64_t helpers = std::min(pool.num_threads(), parts) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::decay_t<decltype(help)>(help));
  help();
  while (shared->done.load() < parts) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

// Outputs a part: enough bytes that taking one costs nothing beside it, and few enough that threads end together.
inline int64_t PartSize(int64_t outputs, int64_t row_bytes) {
  const int64_t wanted = std::max<int64_t>(1, (int64_t{128} << 10) / std::max<int64_t>(row_bytes, 1));
  return std::min<int64_t>((wanted + 3) / 4 * 4, (outputs + 3) / 4 * 4);
}

template <class Kind>
void Multiply(ffi::ThreadPool& pool, const typename Kind::Row* rows, int64_t count, const typename Kind::Weight* weight,
              int64_t outputs, int64_t size, float* out) {
  const int64_t part = PartSize(outputs, size * sizeof(typename Kind::Weight));
  InParallel(pool, outputs, part, [=](int64_t begin, int64_t end) {
    int64_t o = begin;
    for (; o + 4 <= end; o += 4) Rows<Kind, 4>(weight + o * size, rows, count, size, out + o, outputs);
    for (; o < end; ++o) Rows<Kind, 1>(weight + o * size, rows, count, size, out + o, outputs);
  });
}

ffi::Error Float32Impl(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> rows, ffi::Buffer<ffi::F32> weight,
                       ffi::ResultBuffer<ffi::F32> out) {
  Multiply<Float32>(pool, rows.typed_data(), rows.dimensions()[0], weight.typed_data(), weight.dimensions()[0],
                    weight.dimensions()[1], out->typed_data());
  return ffi::Error::Success();
}

ffi::Error BFloat16Impl(ffi::ThreadPool pool, ffi::Buffer<ffi::BF16> rows, ffi::Buffer<ffi::BF16> weight,
                        ffi::ResultBuffer<ffi::F32> out) {
  Multiply<BFloat16>(pool, reinterpret_cast<const uint16_t*>(rows.untyped_data()), rows.dimensions()[0],
                     reinterpret_cast<const uint16_t*>(weight.untyped_data()), weight.dimensions()[0],
                     weight.dimensions()[1], out->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_float32, Float32Impl,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_bfloat16, BFloat16Impl,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>().Ret<ffi::Buffer<ffi::F32>>());

// The instructions that the compiler was allowed, for reports.
extern "C" const char* kljudge_describe() {
#if defined(__AVX512BF16__)
  return "AVX-512 with bfloat16";
#elif defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__ARM_NEON)
  return "NEON";
#else
  return "portable";
#endif
}
