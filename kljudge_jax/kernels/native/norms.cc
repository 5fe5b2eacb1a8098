// Norms by the root mean square, for XLA's CPU backend: of a row, or of the sum of two, which is kept too.
//
// XLA sums the squares of a lone row in another order than those of several rows. Here the order follows from the row's
// length alone, so that its numbers are the same to the bit whoever stands beside it.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vectors.h"
#include "workers.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace kljudge {
namespace {

struct Norm {
  const float *x, *more, *scale;  // [rows, size], the same or none, [size]
  float *sum, *out;               // [rows, size] each; the first where there is more to add
  int64_t rows, size;
  float eps;

  static constexpr int64_t kSums = 4;  // side by side: each waits for its last addition

  void Row(int64_t row) const {
    const float* from = x + row * size;
    if (more) {
      const float* other = more + row * size;
      float* to = sum + row * size;
      int64_t i = 0;
      for (; i + kLanes <= size; i += kLanes) Put(to + i, Load<F32>(from + i) + Load<F32>(other + i));
      for (; i < size; ++i) to[i] = from[i] + other[i];
      from = to;
    }
    F32 squares[kSums] = {};
    int64_t i = 0;
    for (; i + kSums * kLanes <= size; i += kSums * kLanes)
      KLJUDGE_UNROLL
      for (int64_t j = 0; j < kSums; ++j) {
        const F32 v = Load<F32>(from + i + j * kLanes);
        squares[j] += v * v;
      }
    float total = Sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    for (; i < size; ++i) total += from[i] * from[i];
    const float inverse = 1.0f / std::sqrt(total / size + eps);
    float* to = out + row * size;
    for (i = 0; i + kLanes <= size; i += kLanes) Put(to + i, Load<F32>(from + i) * inverse * Load<F32>(scale + i));
    for (; i < size; ++i) to[i] = from[i] * inverse * scale[i];
  }

  void Run() const {
    const int64_t each = std::max<int64_t>(1, kPart / std::max<int64_t>(1, size));
    Workers::Get().Run((rows + each - 1) / each, [&](int64_t part) {
      for (int64_t row = part * each; row < std::min(rows, (part + 1) * each); ++row) Row(row);
    });
  }

  static constexpr int64_t kPart = 16 << 10;  // numbers: fewer cost less than to call another thread
};

ffi::Error NormImpl(ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> scale, ffi::ResultBuffer<ffi::F32> out, float eps) {
  Norm{x.typed_data(),    nullptr,           scale.typed_data(), nullptr,
       out->typed_data(), x.dimensions()[0], x.dimensions()[1],  eps}
      .Run();
  return ffi::Error::Success();
}

ffi::Error SumNormImpl(ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> more, ffi::Buffer<ffi::F32> scale,
                       ffi::ResultBuffer<ffi::F32> sum, ffi::ResultBuffer<ffi::F32> out, float eps) {
  Norm{x.typed_data(),    more.typed_data(), scale.typed_data(), sum->typed_data(),
       out->typed_data(), x.dimensions()[0], x.dimensions()[1],  eps}
      .Run();
  return ffi::Error::Success();
}

}  // namespace

}  // namespace kljudge

XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_norm, kljudge::NormImpl,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("eps"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_sum_norm, kljudge::SumNormImpl,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("eps"));
