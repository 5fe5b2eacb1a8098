// Attention over a cache, for XLA's CPU backend: it reads what was written of the cache, once for all heads that share
// it, and writes it in place. A query's numbers are the same to the bit whoever stands beside it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tiles.h"
#include "vectors.h"
#include "workers.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace kljudge {
namespace {

// e to the power of x for x <= 0, to 2 units in the last place (Cephes' polynomial); 0 below -87, NaN of NaN.
inline F32 Exp(F32 x) {
  const F32 low = F32{} - 87.0f;
  const I32 tiny = x < low;
  const F32 kept = (F32)(((I32)x & ~tiny));  // 0 where the result will be 0
  const F32 turns = kept * 1.44269504088896341f - 0.5f;
  const I32 n = __builtin_convertvector(turns, I32);  // towards 0, which for x <= 0 rounds x / ln 2 to nearest
  const F32 whole = __builtin_convertvector(n, F32);
  const F32 r = kept - whole * 0.693359375f + whole * 2.12194440e-4f;
  F32 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const F32 value = p * (F32)((n + 127) << 23);
  return (F32)((I32)value & ~tiny);
}

// What attention reads and writes; one row of the batch is `time` queries of `heads` heads.
struct Attention {
  const float *query, *key, *value;  // [B, T, N, D], [B, T, G, D] twice
  const int32_t* start;              // [B], the position of a row's first query
  float *keys, *values;              // [B, G, S, D]
  float* out;                        // [B, T, N, D]
  int64_t batch, time, heads, groups, dim, slots, window;
  float softcap;

  // The new keys and values of one row and group go to their slots; where those lie past the end, as far back as XLA
  // would put them.
  void StoreNew(int64_t unit) const {
    const int64_t b = unit / groups, g = unit % groups, at = std::clamp<int64_t>(start[b], 0, slots - time);
    for (int64_t t = 0; t < time; ++t) {
      const int64_t from = ((b * time + t) * groups + g) * dim, to = ((b * groups + g) * slots + at + t) * dim;
      std::memcpy(keys + to, key + from, dim * sizeof(float));
      std::memcpy(values + to, value + from, dim * sizeof(float));
    }
  }

  // Some queries of one row that read the same keys and values: number q is head q % shared of the group, at time
  // q / shared. Each key and value that comes from memory serves them all.
  void Queries(int64_t b, int64_t g, int64_t begin, int64_t end) const {
    static thread_local Buffer<float> rows, scores;
    const int64_t shared = heads / groups, count = end - begin, width = (slots + kLanes - 1) / kLanes * kLanes;
    const float* k = keys + (b * groups + g) * slots * dim;
    const float* v = values + (b * groups + g) * slots * dim;
    rows.resize(count * dim);
    scores.resize(count * width);
    const auto place = [&](int64_t q) { return ((b * time + q / shared) * heads + g * shared + q % shared) * dim; };
    for (int64_t q = begin; q < end; ++q)
      std::memcpy(rows.data() + (q - begin) * dim, query + place(q), dim * sizeof(float));

    // The slots that a query sees, both ends included.
    const auto last = [&](int64_t q) { return std::clamp<int64_t>(start[b] + q / shared, 0, slots - 1); };
    const auto first = [&](int64_t q) { return window ? std::max<int64_t>(0, last(q) + 1 - window) : 0; };
    const PackedRows<Float32> packed(rows.data(), count, dim, Plain<Float32>::kMostRows);
    const Plain<Float32> product{k, &packed, width, scores.data()};
    const int64_t seen = last(end - 1) + 1;
    for (int64_t s = first(begin) / 4 * 4; s < seen; s += 60) Outputs(product, s, std::min(seen, s + 60));

    for (int64_t q = begin; q < end; ++q) Softmax(scores.data() + (q - begin) * width, first(q), last(q));

    for (int64_t row = 0, now; row < count; row += now) {
      now = TileRows(count - row, kMixed);
      const float* weights = scores.data() + row * width;
      int64_t froms[kMixed], lasts[kMixed];
      float* to[kMixed];
      for (int64_t r = 0; r < now; ++r) {
        froms[r] = first(begin + row + r);
        lasts[r] = last(begin + row + r);
        to[r] = out + place(begin + row + r);
      }
      int64_t i = 0;
      for (; i + kBlock * kLanes <= dim; i += kBlock * kLanes)
        MixRows<kBlock>(weights, width, v + i, now, froms, lasts, to, i);
      for (; i + kLanes <= dim; i += kLanes) MixRows<1>(weights, width, v + i, now, froms, lasts, to, i);
      for (; i < dim; ++i)
        for (int64_t r = 0; r < now; ++r) {
          float sum = 0;
          for (int64_t s = froms[r]; s <= lasts[r]; ++s) sum += weights[r * width + s] * v[s * dim + i];
          to[r][i] = sum;
        }
    }
  }

  // Scores of slots `from` to `last` become weights.
  void Softmax(float* row, int64_t from, int64_t last) const {
    if (softcap != 0)
      for (int64_t s = from; s <= last; ++s) row[s] = softcap * std::tanh(row[s] / softcap);
    float most = row[from];
    for (int64_t s = from; s <= last; ++s) most = row[s] > most || row[s] != row[s] ? row[s] : most;
    // Whole vectors, at places that do not depend on how many queries there are.
    const int64_t begin = from / kLanes * kLanes, end = (last + kLanes) / kLanes * kLanes;
    for (int64_t s = begin; s < from; ++s) row[s] = -INFINITY;
    for (int64_t s = last + 1; s < end; ++s) row[s] = -INFINITY;
    F32 total = {};
    for (int64_t s = begin; s < end; s += kLanes) {
      const F32 e = Exp(Load<F32>(row + s) - most);
      total += e;
      Put(row + s, e);
    }
    const float scale = 1.0f / Sum(total);
    for (int64_t s = begin; s < end; s += kLanes) Put(row + s, Load<F32>(row + s) * scale);
  }

  static constexpr int64_t kMixed = 6;                            // queries whose sums are in registers at a time
  static constexpr int kBlock = kRegisters >= 32 ? 4 : 2;  // and the vectors of each

  // Sums of values by weights, `kVectors` vectors of each of some queries: over the slots that all of them see
  // together, over others one by one, and for each query in the order of the slots.
  template <int kVectors>
  void MixRows(const float* weights, int64_t width, const float* v, int64_t count, const int64_t* froms,
               const int64_t* lasts, float* const* to, int64_t i) const {
    F32 sums[kMixed * kVectors] = {};
    int64_t begin = *std::max_element(froms, froms + count), end = *std::min_element(lasts, lasts + count) + 1;
    if (begin > end) begin = end = 0;
    if (begin == end) begin = end = *std::min_element(froms, froms + count);
    for (int64_t r = 0; r < count; ++r)
      Mix<1, kVectors>(weights + r * width, width, v, froms[r], begin, sums + r * kVectors);
    switch (count) {
      case 1: Mix<1, kVectors>(weights, width, v, begin, end, sums); break;
      case 2: Mix<2, kVectors>(weights, width, v, begin, end, sums); break;
      case 3: Mix<3, kVectors>(weights, width, v, begin, end, sums); break;
      case 4: Mix<4, kVectors>(weights, width, v, begin, end, sums); break;
      case 5: Mix<5, kVectors>(weights, width, v, begin, end, sums); break;
      default: Mix<6, kVectors>(weights, width, v, begin, end, sums); break;
    }
    for (int64_t r = 0; r < count; ++r) {
      Mix<1, kVectors>(weights + r * width, width, v, std::max(end, froms[r]), lasts[r] + 1, sums + r * kVectors);
      for (int j = 0; j < kVectors; ++j) Put(to[r] + i + j * kLanes, sums[r * kVectors + j]);
    }
  }

  template <int kRows, int kVectors>
  void Mix(const float* weights, int64_t width, const float* v, int64_t from, int64_t to, F32* sums) const {
    if (from >= to) return;
    F32 kept[kRows][kVectors];
    KLJUDGE_UNROLL
    for (int r = 0; r < kRows; ++r)
      KLJUDGE_UNROLL
      for (int j = 0; j < kVectors; ++j) kept[r][j] = sums[r * kVectors + j];
    for (int64_t s = from; s < to; ++s) {
      F32 value[kVectors];
      KLJUDGE_UNROLL
      for (int j = 0; j < kVectors; ++j) value[j] = Load<F32>(v + s * dim + j * kLanes);
      KLJUDGE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const float weight = weights[r * width + s];
        KLJUDGE_UNROLL
        for (int j = 0; j < kVectors; ++j) kept[r][j] += value[j] * weight;
      }
    }
    KLJUDGE_UNROLL
    for (int r = 0; r < kRows; ++r)
      KLJUDGE_UNROLL
      for (int j = 0; j < kVectors; ++j) sums[r * kVectors + j] = kept[r][j];
  }

  void Run() const {
    for (int64_t unit = 0; unit < batch * groups; ++unit) StoreNew(unit);
    // Few enough queries at a time that their scores stay in the second cache.
    const int64_t each_group = time * (heads / groups), longest = *std::max_element(start, start + batch) + time;
    int64_t pieces = (each_group + kQueries - 1) / kQueries;
    while (batch * groups * pieces < Workers::Get().Count() && pieces < each_group) ++pieces;
    const int64_t each = (each_group + pieces - 1) / pieces, parts = batch * groups * pieces;
    const auto part = [=](int64_t number) {
      const int64_t unit = number / pieces, begin = number % pieces * each, end = std::min(each_group, begin + each);
      if (begin < end) Queries(unit / groups, unit % groups, begin, end);
    };
    // A handful of scores costs less than to call another thread.
    if (batch * time * heads * longest < 2048)
      for (int64_t number = 0; number < parts; ++number) part(number);
    else Workers::Get().Run(parts, part);
  }

  static constexpr int64_t kQueries = 18;
};

ffi::Error AttentionImpl(ffi::Buffer<ffi::F32> query, ffi::Buffer<ffi::F32> key, ffi::Buffer<ffi::F32> value,
                         ffi::Buffer<ffi::S32> start, ffi::Buffer<ffi::F32> keys, ffi::Buffer<ffi::F32> values,
                         ffi::ResultBuffer<ffi::F32> out, ffi::ResultBuffer<ffi::F32> new_keys,
                         ffi::ResultBuffer<ffi::F32> new_values, int64_t window, float softcap) {
  const auto q = query.dimensions(), stored = keys.dimensions();
  const int64_t bytes = keys.size_bytes();
  // XLA gives the cache itself where nobody needs the old one; else a place for a copy.
  if (new_keys->typed_data() != keys.typed_data()) std::memcpy(new_keys->typed_data(), keys.typed_data(), bytes);
  if (new_values->typed_data() != values.typed_data())
    std::memcpy(new_values->typed_data(), values.typed_data(), bytes);
  Attention attention{query.typed_data(),      key.typed_data(),         value.typed_data(),
                      start.typed_data(),      new_keys->typed_data(),   new_values->typed_data(),
                      out->typed_data(),       int64_t(q[0]),            int64_t(q[1]),
                      int64_t(q[2]),           int64_t(stored[1]),       int64_t(q[3]),
                      int64_t(stored[2]),      window,                   softcap};
  attention.Run();
  return ffi::Error::Success();
}

}  // namespace

}  // namespace kljudge

XLA_FFI_DEFINE_HANDLER_SYMBOL(kljudge_attention, kljudge::AttentionImpl,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("window")
                                  .Attr<float>("softcap"));
