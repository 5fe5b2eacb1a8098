// Products of a few rows with weights of integers, for XLA's CPU backend.
//
// The rows are rounded to integers too. A weight lies in panels of 16 outputs, is read once by all cores, and each load
// serves as many rows as there are registers for. As in tiles.h, a token's numbers are the same to the bit whether it
// is scored alone or beside others.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "vectors.h"
#include "workers.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace kljudge {
namespace {

constexpr int64_t kGroup = 64;    // columns of a row of numbers that are rounded together
constexpr int64_t kColumns = 32;  // columns of a weight that are stored together: a block
constexpr int64_t kPanel = 16;    // outputs side by side in a panel

// Whether products take weights as unsigned bytes: then those without a minimum come with 128 added (fewer than 8 bits
// are moved up in their bytes, so that 128 is their middle), and the rows' sums make up for it.
#if defined(__AVX512VNNI__)
constexpr bool kUnsigned = true;
#else
constexpr bool kUnsigned = false;
#endif

// Rows rounded to int8 in groups of 64 that share a scale: what weights of integers are multiplied with. A row ends in
// zeros up to a whole block of 32. Of each tile of rows all rows' first 32 columns come first, then all rows' next ones.
struct Int8Rows {
  // What of a block is the same for all weights: its scale, what products with weights that have no minimum begin with,
  // and the products with minima.
  struct Shared {
    float step;
    int32_t begin[2], begin_all;  // of 16 columns each, and of all 32
    float sum;                    // of 32 columns, scaled
  };
  int64_t count, size, blocks;
  Buffer<int8_t> values;  // [blocks, rows of the tile, 32] a tile
  Buffer<Shared> shared;  // [blocks, rows of the tile] a tile

  Int8Rows(const float* rows, int64_t count, int64_t size, int64_t blocks, int64_t most)
      : count(count), size(size), blocks(blocks), values(count * blocks * kColumns), shared(count * blocks) {
    std::vector<int64_t> tile(count), tall(count);  // of the tile that a row is in: its first row, and how many it has
    for (int64_t row = 0, rows_here; row < count; row += rows_here) {
      rows_here = TileRows(count - row, most);
      std::fill_n(tile.begin() + row, rows_here, row);
      std::fill_n(tall.begin() + row, rows_here, rows_here);
    }
    const int64_t groups = (blocks + 1) / 2, each = std::max<int64_t>(1, count * groups / 16);
    Workers::Get().Run((count * groups + each - 1) / each, [&](int64_t part) {
      for (int64_t i = part * each; i < std::min(count * groups, (part + 1) * each); ++i) {
        const int64_t row = i / groups;
        Round(rows + row * size, i % groups, tile[row] * blocks + row - tile[row], tall[row]);
      }
    });
  }

  // One group of a row, whose block `b` goes to place `first + b * apart`.
  void Round(const float* row, int64_t group, int64_t first, int64_t apart) {
    const int64_t from = group * kGroup, there = std::clamp<int64_t>(size - from, 0, kGroup);
    alignas(64) float x[kGroup] = {};
    std::memcpy(x, row + from, there * sizeof(float));
    F32 mosts = {};
    I32 fit = I32{} - 1;
    for (int64_t j = 0; j < kGroup; j += kLanes) {
      const F32 magnitude = (F32)(Load<I32>(x + j) & 0x7fffffff);
      mosts = magnitude > mosts ? magnitude : mosts;
      fit &= magnitude < INFINITY;
    }
    float most = 0;
    bool all_fit = true;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      most = std::max(most, mosts[lane]);
      all_fit &= fit[lane] != 0;
    }
    // What is no number makes the whole row none, as it does in a float product.
    // Where the largest is next to nothing, the inverse would be past all numbers.
    const float inverse = all_fit && most > 1e-36f ? 127 / most : 0;
    alignas(64) int32_t rounded[kGroup];
    for (int64_t j = 0; j < kGroup; j += kLanes) {
      // A number this large has no places after the point: the sum is rounded to nearest, and its last bits are it.
      const F32 large = Load<F32>(x + j) * inverse + 0x1.8p23f;
      Put(rounded + j, all_fit ? (I32)large - 0x4b400000 : I32{});
    }
    for (int64_t block = 2 * group; block < std::min(blocks, 2 * group + 2); ++block) {
      const int64_t at = first + block * apart;
      const int32_t* here = rounded + (block - 2 * group) * kColumns;
      int8_t* to = values.data() + at * kColumns;
      int32_t sums[2] = {};
      for (int64_t j = 0; j < kColumns; ++j) to[j] = static_cast<int8_t>(here[j]);
      for (int half = 0; half < 2; ++half)
        for (int64_t j = 0; j < kColumns / 2; ++j) sums[half] += here[half * kColumns / 2 + j];
      Shared& all = shared[at];
      all.step = all_fit ? most / 127 : NAN;
      for (int half = 0; half < 2; ++half) all.begin[half] = kUnsigned ? -128 * sums[half] : 0;
      all.begin_all = all.begin[0] + all.begin[1];
      all.sum = all.step * (sums[0] + sums[1]);
    }
  }
};

// sum + weights by rows, four neighbours a lane.
inline I32 DotBytes(I32 sum, U8 weights, U8 rows) {
#if defined(__AVX512VNNI__)
  return (I32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, (__m512i)rows);
#elif defined(__AVX512BW__)
  // Magnitudes are 128 and 127 at most, so that two products fit 16 bits.
  const __m512i w = (__m512i)weights, x = (__m512i)rows;
  const __m512i turned = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), turned);
  return (I32)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i w = (__m256i)weights, x = (__m256i)rows;
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return (I32)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#elif defined(__ARM_FEATURE_DOTPROD)
  return (I32)vdotq_s32((int32x4_t)sum, (int8x16_t)weights, (int8x16_t)rows);
#else
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 4 * lane; i < 4 * lane + 4; ++i) sum[lane] += int32_t(int8_t(weights[i])) * int32_t(int8_t(rows[i]));
  return sum;
#endif
}

// As many numbers in float16 as a register has lanes.
inline F32 WidenFloat16(const uint16_t* at) {
#if defined(__AVX512F__)
  return (F32)_mm512_cvtph_ps(Load<__m256i>(at));
#elif defined(__AVX2__) && defined(__F16C__)
  return (F32)_mm256_cvtph_ps(Load<__m128i>(at));
#else
  U32 bits;
  for (int i = 0; i < kLanes; ++i) bits[i] = at[i];
  const U32 magnitude = bits & 0x7fff;
  // The exponent's bias differs by 112. Below its least number, float16 counts in steps of 2^-24; XLA has the processor
  // take float32 numbers so small for 0, so that no product of them may be asked for. Its largest exponent is no number.
  const U32 small = (U32)(__builtin_convertvector((I32)magnitude, F32) * 0x1p-24f);
  const U32 large = (magnitude << 13) + (112u << 23), tiny = (U32)(magnitude < 0x400), none = (U32)(magnitude >= 0x7c00);
  return (F32)((small & tiny) | (large & ~tiny) | (none & 0x7f800000) | (bits & 0x8000) << 16);
#endif
}

// A weight `[outputs, size]` of integers, in panels of 16 outputs. In a panel four neighbouring bytes of all its
// outputs are 64 bytes that lie together, so that a register's lanes are outputs: nothing is summed across lanes, and a
// scale is met once for 32 columns of as many outputs as there are lanes. What the bytes hold, kernels/quantize.py says.
struct Blocks {
  const uint8_t* values;    // [panels, steps, 16, 4]
  const uint16_t* scale;    // float16 [panels, blocks, 16]; two for each block of 6 bits
  const uint16_t* minimum;  // the same, or none
  int64_t bits;             // of a value
  const Int8Rows* rows;
  int64_t outputs;
  float* out;
  int64_t blocks = rows->blocks;

  static constexpr int Each(int bits) { return bits == 6 ? 16 : 32; }  // columns that share a scale

  static constexpr int64_t kMostRows = kRegisters >= 32 ? 9 : 4;
  // Vectors of outputs a tile: with registers for two, a number of a row is loaded once for two products.
  static constexpr int64_t kWide = kRegisters >= 32 ? 2 : 1;
  static constexpr int64_t kVectors = kPanel / kLanes;  // of a panel

  int64_t PanelBytes() const { return blocks * kColumns * kPanel * bits / 8; }
  int64_t Whole() const { return ((outputs + kPanel - 1) / kPanel * kVectors + kWide - 1) / kWide; }
  // Tiles of outputs a part, whole panels: enough bytes that taking one costs nothing beside it, few enough that threads
  // end together.
  int64_t Part() const {
    const int64_t whole = std::max<int64_t>(1, kVectors / kWide), bytes = PanelBytes() * kWide * whole / kVectors;
    return whole * std::max<int64_t>(1, (int64_t{64} << 10) / std::max<int64_t>(1, bytes));
  }

  // Each byte of a vector times 2 to the power of `kPlaces`, which may be negative, under a mask that every byte has.
  template <int kPlaces, uint8_t kMask>
  static inline U8 Moved(U8 bytes) {
    U32 moved = (U32)bytes;
    if constexpr (kPlaces > 0) moved = moved << kPlaces;
    if constexpr (kPlaces < 0) moved = moved >> -kPlaces;
    return (U8)moved & kMask;
  }

  // Four neighbouring columns of a block at `w`, number `kQuad` of its eight: as they are where they have a minimum,
  // else in the upper bits of bytes that hold 128 more or, where products are of signed bytes, what they stand for.
  template <int kBits, bool kMinimum, int kQuad>
  static inline U8 Quad(const uint8_t* w) {
    constexpr int64_t kStep = 4 * kPanel;
    constexpr uint8_t kSign = kMinimum || kUnsigned ? 0 : 0x80;
    if constexpr (kBits == 8) {
      return Load<U8>(w + kQuad * kStep) ^ uint8_t{kUnsigned ? 0x80 : 0};
    } else {
      constexpr int kUp = kMinimum ? 0 : 8 - kBits, kAbove = kBits - 4, kShared = kAbove ? 8 / kAbove : 1;
      const U8 half = Load<U8>(w + kQuad % 4 * kStep);
      U8 value = Moved<kUp - (kQuad < 4 ? 0 : 4), uint8_t(15 << kUp)>(half);
      if constexpr (kAbove > 0) {
        const U8 above = Load<U8>(w + (4 + kQuad / kShared) * kStep);
        value |= Moved<kUp + 4 - kQuad % kShared * kAbove, uint8_t(((1 << kAbove) - 1) << (kUp + 4))>(above);
      }
      return value ^ kSign;
    }
  }

  // Vectors `number * kWide` and on of the outputs, for `kRows` rows.
  template <int kBits, bool kMinimum, int kRows>
  void Tile(int64_t number, int64_t first) const {
    constexpr bool kBegin = kUnsigned && !kMinimum;
    constexpr int kEach = Each(kBits), kParts = kColumns / kEach, kQuads = kEach / 4;
    constexpr float kUnit = kMinimum ? 1.0f : 1.0f / (1 << (8 - kBits));  // of a byte that `Quad` gives
    F32 kept[kRows][kWide] = {};
    const uint8_t* w[kWide];
    const uint16_t *s[kWide], *m[kWide];
    for (int j = 0; j < kWide; ++j) {
      // Where there is no vector any more, the last one once again.
      const int64_t vector = std::min(number * kWide + j, (outputs + kPanel - 1) / kPanel * kVectors - 1);
      const int64_t panel = vector / kVectors, lane = vector % kVectors * kLanes;
      const int64_t at_scale = panel * blocks * kParts * kPanel + lane;
      w[j] = values + panel * PanelBytes() + 4 * lane;
      s[j] = scale + at_scale;
      if constexpr (kMinimum) m[j] = minimum + at_scale;
    }
    const int8_t* x = rows->values.data() + first * blocks * kColumns;
    const Int8Rows::Shared* shared = rows->shared.data() + first * blocks;
    for (int64_t block = 0; block < blocks; ++block, x += kRows * kColumns, shared += kRows) {
      ForEach(std::make_integer_sequence<int, kParts>{}, [&](auto part) {
        I32 dots[kRows][kWide];
        KLJUDGE_UNROLL
        for (int r = 0; r < kRows; ++r)
          KLJUDGE_UNROLL
          for (int j = 0; j < kWide; ++j)
            dots[r][j] = kBegin ? I32{} + (kParts == 2 ? shared[r].begin[part] : shared[r].begin_all) : I32{};
        ForEach(std::make_integer_sequence<int, kQuads>{}, [&](auto quad) {
          constexpr int kQuad = decltype(part)::value * kQuads + decltype(quad)::value;
          U8 bytes[kWide];
          KLJUDGE_UNROLL
          for (int j = 0; j < kWide; ++j) bytes[j] = Quad<kBits, kMinimum, kQuad>(w[j]);
          KLJUDGE_UNROLL
          for (int r = 0; r < kRows; ++r) {
            const U8 four = (U8)(I32{} + Load<int32_t>(x + r * kColumns + 4 * kQuad));
            KLJUDGE_UNROLL
            for (int j = 0; j < kWide; ++j) dots[r][j] = DotBytes(dots[r][j], bytes[j], four);
          }
        });
        KLJUDGE_UNROLL
        for (int j = 0; j < kWide; ++j) {
          const F32 scales = WidenFloat16(s[j]) * kUnit;
          KLJUDGE_UNROLL
          for (int r = 0; r < kRows; ++r)
            kept[r][j] += __builtin_convertvector(dots[r][j], F32) * (scales * shared[r].step);
          s[j] += kPanel;
          if constexpr (kMinimum) {
            const F32 least = WidenFloat16(m[j]);
            KLJUDGE_UNROLL
            for (int r = 0; r < kRows; ++r) kept[r][j] += least * shared[r].sum;
            m[j] += kPanel;
          }
        }
      });
      KLJUDGE_UNROLL
      for (int j = 0; j < kWide; ++j) {
        KLJUDGE_UNROLL
        for (int line = 0; line < kBits; ++line)
          __builtin_prefetch(reinterpret_cast<const char*>(w[j]) + kAhead / 4 + line * 4 * kPanel, 0, 2);
        w[j] += kBits * 4 * kPanel;
      }
    }
    for (int j = 0; j < kWide; ++j) {
      const int64_t o = (number * kWide + j) * kLanes, there = std::min(outputs - o, kLanes);
      if (there <= 0) break;
      for (int r = 0; r < kRows; ++r) std::memcpy(out + (first + r) * outputs + o, &kept[r][j], there * sizeof(float));
    }
  }

  template <int kBits, bool kMinimum, int kRows>
  void OfRows(int64_t number, int64_t row, int64_t tall) const {
    if constexpr (kRows < kMostRows) {
      if (tall != kRows) return OfRows<kBits, kMinimum, kRows + 1>(number, row, tall);
    }
    Tile<kBits, kMinimum, kRows>(number, row);
  }

  template <int kBits, bool kMinimum>
  void OfForm(int64_t number) const {
    for (int64_t row = 0, tall; row < rows->count; row += tall) {
      tall = TileRows(rows->count - row, kMostRows);
      OfRows<kBits, kMinimum, 1>(number, row, tall);
    }
  }

  void Outputs(int64_t number) const {
    switch (bits) {
      case 4: return minimum ? OfForm<4, true>(number) : OfForm<4, false>(number);
      case 5: return minimum ? OfForm<5, true>(number) : OfForm<5, false>(number);
      case 6: return OfForm<6, false>(number);
      default: return OfForm<8, false>(number);
    }
  }

  void Do(int64_t begin, int64_t end) const {
    for (int64_t tile = begin; tile < end; ++tile) Outputs(tile);
  }
};

// Rows, then of each weight its values, scale and minimum; one result a weight. `schemes` has a number for each weight:
// its bits, plus 16 where there is a minimum.
ffi::Error BlocksImpl(ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Span<const int64_t> schemes) {
  auto given = arguments.get<ffi::Buffer<ffi::F32>>(0);
  if (!given.has_value()) return given.error();
  std::vector<Blocks> ops;
  std::unique_ptr<Int8Rows> rows;
  size_t next = 1;
  for (size_t i = 0; i < results.size(); ++i) {
    auto values = arguments.get<ffi::AnyBuffer>(next++);
    auto scale = arguments.get<ffi::AnyBuffer>(next++);
    auto out = results.get<ffi::AnyBuffer>(i);
    if (!values.has_value()) return values.error();
    if (!scale.has_value()) return scale.error();
    if (!out.has_value()) return out.error();
    const uint16_t* minimum = nullptr;
    if (schemes[i] & 16) {
      auto least = arguments.get<ffi::AnyBuffer>(next++);
      if (!least.has_value()) return least.error();
      minimum = static_cast<const uint16_t*>(least->untyped_data());
    }
    const int64_t bits = schemes[i] & 15, blocks = scale->dimensions()[1] * Blocks::Each(bits) / kColumns;
    const bool known = bits == 4 || bits == 5 || (!minimum && (bits == 6 || bits == 8));
    if (!known || (rows && blocks != rows->blocks))
      return ffi::Error(ffi::ErrorCode::kInvalidArgument, "weights of a scheme or a size that is not known here");
    if (!rows)
      rows = std::make_unique<Int8Rows>(given->typed_data(), given->dimensions()[0], given->dimensions()[1],
                                        blocks, Blocks::kMostRows);
    ops.push_back({static_cast<const uint8_t*>(values->untyped_data()),
                   static_cast<const uint16_t*>(scale->untyped_data()), minimum, bits, rows.get(),
                   (*out)->dimensions()[1], static_cast<float*>((*out)->untyped_data())});
  }
  RunAll(ops);
  return ffi::Error::Success();
}

}  // namespace

}  // namespace kljudge

XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_blocks, kljudge::BlocksImpl,
                              ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<ffi::Span<const int64_t>>("schemes"));
