// Products of a few rows with weights of float32 or bfloat16, for XLA's CPU backend: see tiles.h.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tiles.h"
#include "vectors.h"
#include "workers.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace kljudge {

template void Outputs<Plain<Float32>>(const Plain<Float32>&, int64_t, int64_t);

namespace {

inline float WidenBFloat16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  return Load<float>(&wide);
}

#if defined(__AVX512BF16__)
struct BFloat16 {
  using Element = uint16_t;
  using Packed = uint16_t;
  using Operand = U32;  // two elements a lane
  static constexpr int64_t kLeastRows = 1, kMostRows = kRegisters >= 32 ? 6 : 3;
  static constexpr int64_t kMostWhole = 2 * kMostRows;
  static constexpr int64_t kStep = 2 * kLanes;
  static constexpr int kHalves = 1;
  static inline Operand Operands(const Element* at, int) { return Load<U32>(at); }
  static inline Operand Row(const Packed* at, int) { return Load<U32>(at); }
  static inline F32 Add(F32 sum, Operand weight, Operand row) {
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)row);
  }
  static inline float Widen(uint16_t bits) { return WidenBFloat16(bits); }
};
#else
// Without an instruction for it: the even elements of a step in one vector, and the odd ones in another.
struct BFloat16 {
  using Element = uint16_t;
  using Packed = uint16_t;
  using Operand = F32;
  static constexpr int64_t kLeastRows = 1, kMostRows = kRegisters >= 32 ? 6 : 3;
  static constexpr int64_t kMostWhole = 2 * kMostRows;
  static constexpr int64_t kStep = 2 * kLanes;
  static constexpr int kHalves = 2;
  static inline Operand Operands(const Element* at, int half) {
    const U32 both = Load<U32>(at);
    return (F32)(half == 0 ? both << 16 : both & 0xffff0000u);
  }
  static inline Operand Row(const Packed* at, int half) { return Operands(at, half); }
  static inline F32 Add(F32 sum, Operand weight, Operand row) { return sum + weight * row; }
  static inline float Widen(uint16_t bits) { return WidenBFloat16(bits); }
};

// The same for 7 to 9 rows: one tile, for which a weight is widened once, as the rows are when they are packed. They
// take twice the cache then, which costs more than it saves where there are fewer rows or several tiles of them.
struct TallBFloat16 : BFloat16 {
  using Packed = float;
  static constexpr int64_t kLeastRows = 7, kMostRows = kRegisters >= 32 ? 9 : 0;  // none with few registers
  static constexpr int64_t kMostWhole = 0;
  static inline Operand Row(const Packed* at, int half) { return Load<F32>(at + half * kLanes); }
};
#endif

template <class Kind>
void Multiply(const typename Kind::Element* rows, int64_t count, int64_t size,
              const std::vector<const typename Kind::Element*>& weights, const std::vector<float*>& outs,
              const std::vector<int64_t>& outputs) {
  const PackedRows<Kind> packed(rows, count, size, Plain<Kind>::kMostRows);
  std::vector<Plain<Kind>> ops;
  for (size_t i = 0; i < weights.size(); ++i) ops.push_back({weights[i], &packed, outputs[i], outs[i]});
  RunAll(ops);
}

// Rows, then weights; one result a weight.
template <class Kind>
ffi::Error Products(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  auto rows = arguments.get<ffi::AnyBuffer>(0);
  if (!rows.has_value()) return rows.error();
  std::vector<const typename Kind::Element*> weights;
  std::vector<float*> outs;
  std::vector<int64_t> outputs;
  for (size_t i = 0; i < results.size(); ++i) {
    auto weight = arguments.get<ffi::AnyBuffer>(i + 1);
    auto out = results.get<ffi::AnyBuffer>(i);
    if (!weight.has_value()) return weight.error();
    if (!out.has_value()) return out.error();
    weights.push_back(static_cast<const typename Kind::Element*>(weight->untyped_data()));
    outs.push_back(static_cast<float*>((*out)->untyped_data()));
    outputs.push_back(weight->dimensions()[0]);
  }
  Multiply<Kind>(static_cast<const typename Kind::Element*>(rows->untyped_data()), rows->dimensions()[0],
                 rows->dimensions()[1], weights, outs, outputs);
  return ffi::Error::Success();
}

ffi::Error Float32Impl(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return Products<Float32>(arguments, results);
}

ffi::Error BFloat16Impl(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
#if !defined(__AVX512BF16__)
  const auto rows = arguments.get<ffi::AnyBuffer>(0);
  const int64_t count = rows.has_value() ? rows->dimensions()[0] : 0;
  if (count >= TallBFloat16::kLeastRows && count <= TallBFloat16::kMostRows)
    return Products<TallBFloat16>(arguments, results);
#endif
  return Products<BFloat16>(arguments, results);
}

}  // namespace

}  // namespace kljudge

XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_float32, kljudge::Float32Impl, ffi::Ffi::Bind().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_bfloat16, kljudge::BFloat16Impl, ffi::Ffi::Bind().RemainingArgs().RemainingRets());

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
